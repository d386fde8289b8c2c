"""Tables in narrow terminals and in pipes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from topwork import tables

HEADERS = ("operation", "kind", "model", "accepted")
IDENTIFIER = "0eedf153-e607-48de-8787-0cdbbd424572"
ROW = (IDENTIFIER, "add_examples", "flowers-of-the-north-[bold]", "2026-11-27 18:47:05Z")


def rendered(table: Table, columns: int) -> str:
    """Return a table as text of a terminal of ``columns``."""
    file = io.StringIO()
    Console(file=file, width=columns).print(table)
    return file.getvalue()


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_cells_are_wrapped_not_truncated(columns: int) -> None:
    """At any width no character is lost, and the column to copy is not wrapped."""
    text = rendered(tables.table(HEADERS, [ROW], copied=["operation"]), columns)
    assert IDENTIFIER in text
    assert "…" not in text
    assert sorted("".join(text.split())) == sorted("".join("".join((*HEADERS, *ROW)).split()))
    assert all(len(line) <= columns for line in text.splitlines())


def test_copied_cells_that_are_too_long_are_wrapped() -> None:
    """The first of two columns to copy is not wrapped; the other is complete."""
    rows = [(IDENTIFIER, "X" * 63, "Y" * 63, "1")]
    text = rendered(tables.table(("id", "model", "label", "n"), rows, copied=["id", "model"]), 80)
    assert IDENTIFIER in text
    assert (text.count("X"), text.count("Y")) == (63, 63)


def test_console_has_at_least_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal of less than 80 columns tables are as wide as for 80."""
    monkeypatch.setenv("COLUMNS", "40")
    assert tables.console().width == 80


def test_pipe_has_one_line_per_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe a row is one line of any length, unless COLUMNS is set."""
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = [("a" * 300, "b" * 300)] * 2
    tables.console().print(tables.table(("one", "other"), rows))
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setenv("COLUMNS", "100")
    tables.console().print(tables.table(("one", "other"), rows))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_width_is_the_sum_of_the_longest_cells() -> None:
    """The width counts the longest cell of each column and a space between columns."""
    assert tables.width(tables.table(("a", "b"), [("123", "12345")])) == 3 + 1 + 5
