"""Glob patterns among local paths, for more files than a shell's command line takes."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.printable import file_name


def expand(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the paths, with the sorted matches of each that does not exist and is a pattern.

    ``**`` matches folders at any depth. Raises InvalidInput if a pattern matches nothing.
    """
    return tuple(match for path in paths for match in _matches(path))


def _matches(path: Path) -> Iterator[Path]:
    if path.exists() or not glob.has_magic(str(path)):
        yield path
        return
    found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 # may be absolute
    if not found:
        raise InvalidInput(f"nothing matches the pattern {file_name(path)}", field="images")
    yield from map(Path, found)
