"""Tables of lazily imported commands."""

from __future__ import annotations

import inspect
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import topwork.cli.commands
import topwork_trainer.cli.commands
from topwork.command_group import CommandGroup, Lazy

GROUPS: dict[str, click.Group] = {
    "topwork": topwork.cli.commands.cli,
    "topwork-train": topwork_trainer.cli.commands.cli,
}
ROWS = pytest.mark.parametrize(
    ("program", "name", "lazy"),
    [
        pytest.param(program, name, lazy, id=f"{program} {name}")
        for program, module in (
            ("topwork", topwork.cli.commands),
            ("topwork-train", topwork_trainer.cli.commands),
        )
        for commands in module.SECTIONS.values()
        for name, lazy in commands.items()
    ],
)


@ROWS
def test_row_equals_the_commands_own_help(program: str, name: str, lazy: Lazy) -> None:
    """The table has the name and the first sentence of the command's help."""
    command = lazy.load()
    paragraph = inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")
    assert (program, command.name) == (lazy.example.split()[0], name)
    assert lazy.help.endswith(".")
    assert f"{paragraph} ".startswith(f"{lazy.help} ")


@ROWS
def test_example_is_a_valid_command_line(
    program: str, name: str, lazy: Lazy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example ends the help and parses with the command's arguments and options."""
    first, second, *arguments = shlex.split(lazy.example)
    assert (first, second) == (program, name)
    monkeypatch.chdir(tmp_path)
    for folder in ("photos/tulips", "more-photos", "more-tulips", "repository"):
        Path(folder).mkdir(parents=True)
    for file in ("mine.onnx", "photo.jpg", "signing-key", "signing-key.pub"):
        Path(file).touch()
    command = lazy.load()
    if isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    command.make_context(name, arguments)
    shown = CliRunner().invoke(GROUPS[program], [name, "--help"])
    assert shown.output.endswith(f"Example:\n    {lazy.example}\n")


@pytest.mark.parametrize("program", GROUPS)
def test_help_lists_all_commands_and_imports_none(program: str) -> None:
    """``--help`` imports click, but no heavy package."""
    module = "topwork.cli" if program == "topwork" else "topwork_trainer.cli"
    code = (
        f"import sys; sys.argv = [{program!r}, '--help']; from {module} import main\n"
        "try: main()\n"
        "finally: print(sorted({'numpy', 'torch', 'grpc', 'msgspec'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    group = GROUPS[program]
    assert isinstance(group, CommandGroup)
    assert all(f"\n  {name} " in done.stdout for name in group.load_all())
    assert done.stdout.endswith("[]\n")


def test_unknown_command_is_reported() -> None:
    """A misspelt command fails with click's message, which has its name."""
    done = CliRunner().invoke(GROUPS["topwork"], ["clasify"])
    assert done.exit_code == 2
    assert "clasify" in done.output
