"""Tables of both commands: in a narrow terminal as in a pipe, no cell is cut."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Column, Table

from topwork.terminal import Console

PIPE_COLUMNS = 10_000
"""Width of what is no terminal: a row is a line, which ``grep`` and ``awk`` can use."""

LEAST_COLUMNS = 80
"""Width for which tables are made; a narrower terminal wraps their lines itself."""

WHOLE_COLUMNS = 56
"""Columns of these that cells may take which are not to be broken."""


def console() -> Console:
    """Return the console of standard output. COLUMNS counts for pipes, too."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return Console(width=PIPE_COLUMNS)
    return Console(width=max(LEAST_COLUMNS, Console().width))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, copied: Sequence[str] = ()
) -> Table:
    """Return a table of plain text, no markup. Cells that are too wide go on below.

    In the columns ``copied`` are names that other commands want: as long as there is room for them,
    the first ones first, they stay in one line.
    """
    cells = [*rows]
    longest = {
        header: max(map(cell_len, column))
        for header, *column in zip(headers, *cells, strict=True)
        if column
    }
    room, whole = WHOLE_COLUMNS, set()
    for header in copied:
        if longest.get(header, 0) <= room:
            room -= longest.get(header, 0)
            whole.add(header)
    columns = (Column(escape(one), overflow="fold", no_wrap=one in whole) for one in headers)
    made = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for row in cells:
        made.add_row(*map(escape, row))
    return made


def width(made: Table) -> int:
    """Return the columns of the terminal that a table takes when no cell goes on below."""
    return Console(width=PIPE_COLUMNS).measure(made).maximum
