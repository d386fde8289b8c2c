"""Partition of rows into cells: sums over many sets become sums over few cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """P cells: each set contains all rows of a cell or none."""

    rows: tuple[NDArray[np.int64], ...]
    """Rows of each of the P cells, in order."""
    within: NDArray[np.bool_]
    """(B, P), True if the set contains the cell."""


def find_cells(sets: NDArray[np.bool_]) -> Cells:
    """Return the cells of sets (B, N): groups of rows that are in the same sets."""
    within, cell = np.unique(sets, axis=1, return_inverse=True)
    order = np.argsort(cell.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(cell.ravel(), minlength=within.shape[1]))
    return Cells(rows=tuple(np.split(order, ends[:-1])), within=within)
