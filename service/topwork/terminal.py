"""Output to terminals: no text of a file, a server or a label can control the terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import click
import rich.console
from rich.markup import escape
from rich.text import Text

from topwork.errors import InvalidInput, NotReady, TopworkError
from topwork.printable import printable


class Console(rich.console.Console):
    """rich's console; strings are printed with their control characters escaped, line by line."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich.console.Console."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


class LocalPath(click.Path):
    """A file or folder on this host: a URL, of which a path would lose a slash, is refused."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """See click."""
        if "://" in os.fspath(value):
            self.fail(f"{value!r} is a URL, no file or folder: download it first", param, ctx)
        return super().convert(value, param, ctx)


def run(command: Callable[[], object], *, extras: str) -> None:
    """Run a command line; an expected error is one line on standard error and exit status 1.

    Such as a package that is not installed: the error names the ``extras`` that bring all. Standard
    output escapes what its encoding lacks, as standard error does, instead of failing.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command()
    except TopworkError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        if (package := (error.name or "topwork").partition(".")[0]).startswith("topwork"):
            raise
        wanted = f"this needs the package {package}: pip install 'topwork[{extras}]'"
        _fail(NotReady(wanted))
    except UnicodeEncodeError as error:  # of a message to the server
        _fail(InvalidInput(f"{printable(error.object)} is no UTF-8", field="argument"))


def _fail(error: TopworkError) -> None:
    Console(stderr=True).print(
        "[red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True
    )
    sys.exit(1)
