"""Terminal output: escaped control characters and errors of commands."""

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
    """A printed string and a table's title, header and cells have no control character."""
    file = io.StringIO()
    console = Console(file=file, width=200)
    table = Table(NASTY, title=NASTY)
    table.add_row(NASTY)
    console.print(NASTY, table, f"one {NASTY}\ntwo", markup=False, soft_wrap=True)
    assert file.getvalue().count(ESCAPED) == 5
    assert "\x1b" not in file.getvalue()
    assert "one " in file.getvalue().splitlines()[-2]


def test_markup_still_works() -> None:
    """Escaping does not affect the control sequences that rich adds."""
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard").print("[red]error[/]")
    assert file.getvalue() == "\x1b[31merror\x1b[0m\n"


def test_output_escapes_what_its_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an ASCII terminal a label is escaped and the command does not fail."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    run(lambda: sys.stdout.write("caf\u00e9 \udcff"), extras="cpu")
    sys.stdout.flush()
    assert raw.getvalue() == b"caf\\xe9 \\udcff"


def test_missing_package_names_the_extras(capsys: pytest.CaptureFixture[str]) -> None:
    """A command without its packages fails with one line that names the extras."""
    with pytest.raises(SystemExit, match="1"):
        run(lambda: importlib.import_module("no_such_package.part"), extras="cpu,train")
    assert capsys.readouterr().err == (
        "error: this needs the package no_such_package: pip install 'topwork[cpu,train]'\n"
    )


def test_missing_module_of_topwork_is_a_bug() -> None:
    """A missing module of Topwork itself raises, with its traceback."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run(lambda: importlib.import_module("topwork.no_such_module"), extras="cpu")


def test_no_module_uses_the_console_of_rich() -> None:
    """All output goes through the console that escapes."""
    for folder in ("service/topwork", "trainer/topwork_trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "from rich.console import Console" not in path.read_text(), path
