"""Tables of results: on the terminal, as JSON lines, and between markers of a Markdown page."""

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
    """A table and its measurements."""

    name: str
    """Name in the page's markers and in JSON lines."""
    titles: Sequence[str]
    lines: Sequence[Sequence[str]]
    """A cell for each title."""
    records: Sequence[Any]
    """A dataclass for each measurement."""


def show(table: Table, console: Console) -> None:
    """Print a table."""
    titles, *lines = _grid(table)
    shown = RichTable(*titles, title=table.name)
    for line in lines:
        shown.add_row(*line)
    console.print(shown)


def json_lines(table: Table) -> str:
    """Return a JSON line with the table's name for each measurement."""
    return "".join(
        json.dumps({"table": table.name} | asdict(record)) + "\n" for record in table.records
    )


def write(page: Path, tables: Sequence[Table]) -> None:
    """Write each table between its markers in a Markdown page. Leave the rest of the page.

    Raises ValueError if the page lacks the markers of a table.
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
    """Return titles and lines, transposed if the table is much wider than high."""
    if len(table.lines) > 2 or len(table.titles) <= 4 * len(table.lines):
        return [table.titles, *table.lines]
    turned = zip(table.titles, *table.lines, strict=True)
    return [["", *[""] * len(table.lines)], *map(list, turned)]


def _between(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    changed, count = pattern.subn(lambda match: match[1] + "\n" + content + "\n" + match[2], text)
    if count != 1:
        raise ValueError(f"the page has the marker '<!-- {name} -->' {count} times, not once")
    return changed
