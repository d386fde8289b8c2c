"""Tables of the benchmarks in a Markdown page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.serving import tables
from benchmarks.serving.tables import Table


@dataclass
class Record:
    """A measurement."""

    value: int


def table(name: str = "loads", cells: int = 2) -> Table:
    """Return a table with a single line."""
    titles = [f"title {number}" for number in range(cells)]
    lines = [[str(number) for number in range(cells)]]
    return Table(name=name, titles=titles, lines=lines, records=[Record(value=7)])


def test_write_replaces_the_table_between_markers(tmp_path: Path) -> None:
    """The text between the markers is replaced; all other text is unchanged."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- loads -->\nold\n<!-- end -->\nb\n<!-- swaps -->\nc\n<!-- end -->\n")
    tables.write(page, [table()])
    assert page.read_text() == (
        "a\n<!-- loads -->\n\n| title 0 | title 1 |\n| --- | --- |\n| 0 | 1 |\n\n<!-- end -->\n"
        "b\n<!-- swaps -->\nc\n<!-- end -->\n"
    )


def test_page_without_markers_is_refused(tmp_path: Path) -> None:
    """A table without markers in the page is an error, and the page is unchanged."""
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="'<!-- loads -->' 0 times"):
        tables.write(page, [table()])
    assert page.read_text() == "text\n"


def test_wide_table_with_one_line_is_transposed() -> None:
    """A wide table with a single line has one line per title."""
    assert tables.markdown(table(cells=5)).splitlines()[2:4] == [
        "| title 0 | 0 |",
        "| title 1 | 1 |",
    ]


def test_record_is_a_line_of_json() -> None:
    """A line of JSON has the name of the table."""
    assert tables.json_lines(table()) == '{"table": "loads", "value": 7}\n'
