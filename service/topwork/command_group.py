"""Groups of click commands in sections; a command is imported when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import click


def example(command_line: str) -> str:
    """Return the end of a command's help, which shows an example."""
    return f"\b\nExample:\n  {command_line}"


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is not imported yet."""

    place: str
    """``module:name``."""
    help: str
    """The first sentence of the command's help."""
    example: str
    """A command line, shown at the end of the help."""

    def load(self) -> click.Command:
        """Import the command."""
        module, _, name = self.place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        command.epilog = example(self.example)
        return command


class CommandGroup(click.Group):
    """A group whose help imports no command."""

    def __init__(self, sections: Mapping[str, Mapping[str, Lazy]], **options: object) -> None:
        """``sections`` maps headings of the help to commands by name."""
        super().__init__(**options)  # type: ignore[arg-type] # click's options
        self._sections = sections
        self._lazy = {
            name: lazy for commands in sections.values() for name, lazy in commands.items()
        }

    def load_all(self) -> dict[str, click.Command]:
        """Import all commands, by name."""
        return {name: lazy.load() for name, lazy in self._lazy.items()}

    def list_commands(self, _: click.Context) -> list[str]:
        """See click."""
        return list(self._lazy)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        """See click."""
        return self._lazy[cmd_name].load() if cmd_name in self._lazy else None

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """See click."""
        for section, commands in self._sections.items():
            with formatter.section(section):
                formatter.write_dl([(name, lazy.help) for name, lazy in commands.items()])
