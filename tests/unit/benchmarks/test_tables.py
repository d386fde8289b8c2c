"""Tables get into the page, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.serving import tables
from benchmarks.serving.tables import Table


@dataclass
class Record:
    """Something measured."""

    value: int


def table(name: str = "loads", cells: int = 2) -> Table:
    """Return a table of one line."""
    titles = [f"title {number}" for number in range(cells)]
    lines = [[str(number) for number in range(cells)]]
    return Table(name=name, titles=titles, lines=lines, records=[Record(value=7)])


def test_a_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """What stands between the markers is replaced; all else stays."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- loads -->\nold\n<!-- end -->\nb\n<!-- swaps -->\nc\n<!-- end -->\n")
    tables.write(page, [table()])
    assert page.read_text() == (
        "a\n<!-- loads -->\n\n| title 0 | title 1 |\n| --- | --- |\n| 0 | 1 |\n\n<!-- end -->\n"
        "b\n<!-- swaps -->\nc\n<!-- end -->\n"
    )


def test_a_page_without_the_markers_is_refused(tmp_path: Path) -> None:
    """A table that has no place is an error, and the page stays as it was."""
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="'<!-- loads -->' 0 times"):
        tables.write(page, [table()])
    assert page.read_text() == "text\n"


def test_a_wide_table_of_one_line_is_turned() -> None:
    """It has a line a title."""
    assert tables.markdown(table(cells=5)).splitlines()[2:4] == [
        "| title 0 | 0 |",
        "| title 1 | 1 |",
    ]


def test_a_record_is_a_line_of_json() -> None:
    """It says of which table it is."""
    assert tables.json_lines(table()) == '{"table": "loads", "value": 7}\n'
