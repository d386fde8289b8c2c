"""Options of both command lines that name a repository and the database of its locks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from topwork.storage.location import Location, is_url

C = TypeVar("C", bound=Callable[..., Any])

DATABASE_HELP = (
    "URL of the database of operations, whose locks the writers of a bucket hold, such as "
    "postgresql://user@host/topwork."
)


class RepositoryType(click.ParamType[Location]):
    """A directory, which must exist if ``exists``, or the URL of a bucket."""

    name = "directory or URL"

    def __init__(self, *, exists: bool = False) -> None:
        self._directory = click.Path(exists=exists, file_okay=False, path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Location:
        """Return a Path, or the URL as it is."""
        return value if is_url(value) else self._directory.convert(value, param, ctx)


def repository_option(help: str, *, exists: bool, required: bool = False) -> Callable[[C], C]:  # noqa: A002  # click's word
    """Return the option --repository."""
    return click.option(
        "--repository", required=required, type=RepositoryType(exists=exists), help=help
    )


database_option = click.option(
    "--database",
    default="",
    envvar="TOPWORK_DATABASE",
    show_default="none",
    callback=lambda _context, _option, url: checked_url(url),
    help=DATABASE_HELP,
)


def checked_url(url: str) -> str:
    """Return a URL or an empty text unchanged. Raises BadParameter for anything else."""
    if url and "://" not in url:
        raise click.BadParameter(f"{url!r} is no URL: it has no scheme://")
    return url
