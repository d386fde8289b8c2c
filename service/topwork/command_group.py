"""Command groups of click that import a command when it is run, and list commands by section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import click


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is not imported yet."""

    place: str
    """``module:name``."""
    help: str
    """The first sentence of its help."""
    example: str
    """A command line, which ends its help."""

    def load(self) -> click.Command:
        """Import the command."""
        module, _, name = self.place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        command.epilog = f"\b\nExample:\n  {self.example}"
        return command


class CommandGroup(click.Group):
    """A group whose help needs none of its commands."""

    def __init__(self, sections: Mapping[str, Mapping[str, Lazy]], **options: object) -> None:
        """Take the commands by name, in sections of the help."""
        super().__init__(**options)  # type: ignore[arg-type] # click's own
        self._sections = sections
        self._lazy = {name: lazy for one in sections.values() for name, lazy in one.items()}

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
