"""Tables on standard output: cells are wrapped in a terminal, never truncated."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Column, Table

from topwork.terminal import Console

PIPE_COLUMNS = 10_000
"""Width of a table in a pipe: a row is one line for ``grep`` and ``awk``."""

LEAST_COLUMNS = 80
"""Least width of a table; a narrower terminal wraps the lines itself."""

WHOLE_COLUMNS = 56
"""Columns of these for cells that are not wrapped."""


def console() -> Console:
    """Return the console of standard output; COLUMNS sets its width, in a pipe too."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return Console(width=PIPE_COLUMNS)
    return Console(width=max(LEAST_COLUMNS, Console().width))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, copied: Sequence[str] = ()
) -> Table:
    """Return a table of plain text, without markup; wide cells are wrapped.

    The columns ``copied`` contain names to copy into other commands. They are not wrapped as long
    as they fit into WHOLE_COLUMNS, in the order given.
    """
    cells = [*rows]
    longest = {
        header: max(map(cell_len, column))
        for header, *column in zip(headers, *cells, strict=True)
        if column
    }
    free, whole = WHOLE_COLUMNS, set()
    for header in copied:
        if longest.get(header, 0) <= free:
            free -= longest.get(header, 0)
            whole.add(header)
    columns = (
        Column(escape(header), overflow="fold", no_wrap=header in whole) for header in headers
    )
    result = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for row in cells:
        result.add_row(*map(escape, row))
    return result


def width(table: Table) -> int:
    """Return the width of a table, in characters, without wrapped cells."""
    return Console(width=PIPE_COLUMNS).measure(table).maximum
