"""Tables of results: on the terminal, as JSON lines, and between the markers of a page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table, and the numbers behind it."""

    name: str
    """Of its markers in the page, and of its JSON lines."""
    titles: Sequence[str]
    lines: Sequence[Sequence[str]]
    """One cell a title."""
    records: Sequence[Any]
    """Dataclasses, one a measurement."""


def show(table: Table, console: Console) -> None:
    """Print a table for people."""
    titles, *lines = _grid(table)
    shown = RichTable(*titles, title=table.name)
    for line in lines:
        shown.add_row(*line)
    console.print(shown)


def json_lines(table: Table) -> str:
    """Return one JSON object a line, each with the table's name."""
    return "".join(
        json.dumps({"table": table.name} | asdict(record)) + "\n" for record in table.records
    )


def write(page: Path, tables: Sequence[Table]) -> None:
    """Put each table between its markers in a Markdown page; the rest of the page stays.

    Raises ValueError if the page lacks the markers of one.
    """
    text = page.read_text()
    for table in tables:
        text = _between(text, table.name, markdown(table))
    page.write_text(text)


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    titles, *lines = _grid(table)
    rows = [titles, ["---"] * len(titles), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _grid(table: Table) -> list[Sequence[str]]:
    """Return titles and lines; what is far wider than high is turned."""
    if len(table.lines) > 2 or len(table.titles) <= 4 * len(table.lines):
        return [table.titles, *table.lines]
    turned = zip(table.titles, *table.lines, strict=True)
    return [["", *[""] * len(table.lines)], *map(list, turned)]


def _between(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    changed, found = pattern.subn(lambda match: match[1] + "\n" + content + "\n" + match[2], text)
    if found != 1:
        raise ValueError(f"the page has the marker '<!-- {name} -->' {found} times, not once")
    return changed
