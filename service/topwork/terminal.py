"""Terminal output in which control characters of file names and labels are escaped."""

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

from topwork.bucket_files import is_bucket_url
from topwork.errors import InvalidInput, NotReady, TopworkError
from topwork.printable import printable


class Console(rich.console.Console):
    """rich's console, with control characters in strings escaped line by line."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich.console.Console."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


class LocalPath(click.Path):
    """A file or folder on this host; refuses URLs, because a path would lose a slash of theirs."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """See click."""
        if "://" in os.fspath(value):
            self.fail(f"{value!r} is a URL, not a file or folder: download it first", param, ctx)
        return super().convert(value, param, ctx)


class PathOrURL(LocalPath):
    """A file or folder on this host, or the URL of objects in a bucket, which stays a text."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """See click."""
        return value if is_bucket_url(value) else super().convert(value, param, ctx)


def run(command: Callable[[], object], *, extras: str) -> None:
    """Run a command; print an expected error as one line and exit with status 1.

    The error of a missing package names the ``extras`` that contain it. Standard output escapes
    characters that its encoding lacks, as standard error does.
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
        missing = f"this needs the package {package}: pip install 'topwork[{extras}]'"
        _fail(NotReady(missing))
    except UnicodeEncodeError as error:  # an argument in a message to the server
        _fail(InvalidInput(f"{printable(error.object)} is not UTF-8", field="argument"))


def _fail(error: TopworkError) -> None:
    Console(stderr=True).print(
        "[red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True
    )
    sys.exit(1)
