"""Cells: partition of rows by their membership in sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from topwork.learning.cells import find_cells


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 40))
def test_cells_of_a_set_have_its_rows(seed: int, count: int, rows: int) -> None:
    """Every row is in one cell, and the cells of a set have exactly its rows."""
    sets = np.random.default_rng(seed).random((count, rows)) < 0.6
    cells = find_cells(sets)
    assert sorted(np.concatenate(cells.rows).tolist()) == list(range(rows))
    for members, within in zip(sets, cells.within, strict=True):
        cell_rows = [
            row
            for cell, included in zip(cells.rows, within, strict=True)
            if included
            for row in cell
        ]
        assert sorted(cell_rows) == np.flatnonzero(members).tolist()


def test_folds_are_the_cells_of_their_complements() -> None:
    """Sets that each lack a fold have the folds as cells, not single rows."""
    folds = np.arange(100) % 5
    cells = find_cells(folds != np.arange(5)[:, None])
    assert sorted(rows.tolist() for rows in cells.rows) == [
        list(range(at, 100, 5)) for at in range(5)
    ]
