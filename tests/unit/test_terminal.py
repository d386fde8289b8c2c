"""What is printed to a terminal controls nothing there."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import pytest
from rich.table import Table

from topwork.terminal import Console, run

ROOT = Path(__file__).parents[2]
NASTY = "a\x1b[2Jb\u202ec\udcff"
ESCAPED = "a\\u001b[2Jb\\u202ec\\xff"


def test_strings_and_cells_are_escaped() -> None:
    """A printed string and a table's title, head and cells show no control character."""
    file = io.StringIO()
    console = Console(file=file, width=200)
    table = Table(NASTY, title=NASTY)
    table.add_row(NASTY)
    console.print(NASTY, table, f"one {NASTY}\ntwo", markup=False, soft_wrap=True)
    assert file.getvalue().count(ESCAPED) == 5
    assert "\x1b" not in file.getvalue()
    assert "one " in file.getvalue().splitlines()[-2]


def test_markup_still_works() -> None:
    """Only what is printed is escaped, not what rich makes of it."""
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard").print("[red]error[/]")
    assert file.getvalue() == "\x1b[31merror\x1b[0m\n"


def test_output_escapes_what_its_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal that knows only ASCII a label is escaped instead of ending the command."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    run(lambda: sys.stdout.write("caf\u00e9 \udcff"), extras="cpu")
    sys.stdout.flush()
    assert raw.getvalue() == b"caf\\xe9 \\udcff"


def test_missing_package_names_the_extras(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that needs what is not installed says in one line what to install."""
    with pytest.raises(SystemExit, match="1"):
        run(lambda: importlib.import_module("no_such_package.part"), extras="cpu,train")
    assert capsys.readouterr().err == (
        "error: this needs the package no_such_package: pip install 'topwork[cpu,train]'\n"
    )


def test_missing_module_of_topwork_is_a_bug() -> None:
    """No extra brings it: it has its traceback."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run(lambda: importlib.import_module("topwork.no_such_module"), extras="cpu")


def test_no_command_prints_by_richs_own_console() -> None:
    """Both command lines print by the console that escapes."""
    for folder in ("service/topwork", "trainer/topwork_trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "from rich.console import Console" not in path.read_text(), path
