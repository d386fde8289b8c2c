"""Tables, as narrow terminals and pipes have them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from topwork import tables

HEADERS = ("operation", "kind", "model", "accepted")
IDENTIFIER = "0eedf153-e607-48de-8787-0cdbbd424572"
ROW = (IDENTIFIER, "add_examples", "flowers-of-the-north-[bold]", "2026-11-27 18:47:05Z")


def shown(made: Table, columns: int) -> str:
    """Return what a terminal of some columns shows."""
    file = io.StringIO()
    Console(file=file, width=columns).print(made)
    return file.getvalue()


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_no_cell_is_cut_and_the_copied_one_stays_whole(columns: int) -> None:
    """At any width all characters are there, brackets too, and the column to copy in one line."""
    text = shown(tables.table(HEADERS, [ROW], copied=["operation"]), columns)
    assert IDENTIFIER in text
    assert "…" not in text
    assert sorted("".join(text.split())) == sorted("".join("".join((*HEADERS, *ROW)).split()))
    assert all(len(line) <= columns for line in text.splitlines())


def test_copied_cells_that_are_too_long_go_on_below() -> None:
    """Of two columns to copy the first stays whole, and the other is complete."""
    rows = [(IDENTIFIER, "X" * 63, "Y" * 63, "1")]
    text = shown(tables.table(("id", "model", "label", "n"), rows, copied=["id", "model"]), 80)
    assert IDENTIFIER in text
    assert (text.count("X"), text.count("Y")) == (63, 63)


def test_a_terminal_that_is_too_narrow_wraps_lines_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 80 columns tables stay as they are for 80."""
    monkeypatch.setenv("COLUMNS", "40")
    assert tables.console().width == 80


def test_a_pipe_has_one_line_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: unless COLUMNS says otherwise."""
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = [("a" * 300, "b" * 300)] * 2
    tables.console().print(tables.table(("one", "other"), rows))
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setenv("COLUMNS", "100")
    tables.console().print(tables.table(("one", "other"), rows))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_width_is_that_of_the_longest_cells() -> None:
    """What a table takes when nothing goes on below: a space between cells."""
    assert tables.width(tables.table(("a", "b"), [("123", "12345")])) == 3 + 1 + 5
