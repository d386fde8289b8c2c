"""Cells are what sets are made of."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from topwork.learning.cells import find_cells


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 40))
def test_a_set_is_the_cells_within_it(seed: int, count: int, rows: int) -> None:
    """Every row is in one cell, and the cells of a set have its rows and no others."""
    sets = np.random.default_rng(seed).random((count, rows)) < 0.6
    cells = find_cells(sets)
    assert sorted(np.concatenate(cells.rows).tolist()) == list(range(rows))
    for one, within in zip(sets, cells.within, strict=True):
        mine = [
            row for cell, inside in zip(cells.rows, within, strict=True) if inside for row in cell
        ]
        assert sorted(mine) == np.flatnonzero(one).tolist()


def test_folds_are_as_many_cells() -> None:
    """Sets that lack a fold each have the folds as cells, not a cell a row."""
    folds = np.arange(100) % 5
    cells = find_cells(folds != np.arange(5)[:, None])
    assert sorted(rows.tolist() for rows in cells.rows) == [
        list(range(at, 100, 5)) for at in range(5)
    ]
