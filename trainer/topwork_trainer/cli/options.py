"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from topwork.inputs.folders import LeftOut
from topwork.terminal import Console, LocalPath

data_argument = click.argument("data", type=LocalPath(path_type=Path))


def kind_option(*kinds: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds --kind, passed as ``kind``; empty: found by the files."""
    return click.option(
        "--kind",
        type=click.Choice(kinds),
        callback=lambda _context, _option, value: value or "",
        help="Kind of DATA. Default: found by the files.",
    )


def cache_directory() -> Path:
    """Return the default cache directory, below $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "topwork"  # noqa: PTH117 # an empty Path is "."


def cache_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --cache and --no-cache to a command, passed as ``cache``: a directory or None."""

    @click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        default=cache_directory,
        show_default="~/.cache/topwork",
        help="Directory that caches embeddings and exported backbones for later runs.",
    )
    @click.option("--no-cache", is_flag=True, help="Do not use a cache.")
    @functools.wraps(command)
    def with_cache(*arguments: Any, cache: Path, no_cache: bool, **options: Any) -> None:
        command(*arguments, cache=None if no_cache else cache, **options)

    return with_cache


def split_names(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated option; None if it is not given."""
    return [name for part in text.split(",") if (name := part.strip())] if text else None


def show_folders(console: Console, left_out: Sequence[LeftOut], notes: Sequence[str]) -> None:
    """Print the files that were left out of folders, and decisions about folders."""
    for line in (*(group.line() for group in left_out), *notes):
        console.print(line, markup=False, soft_wrap=True, highlight=False)
