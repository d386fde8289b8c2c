"""Partition of rows into cells, so that sums over many sets are sums over few cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """P groups of rows, each wholly in a set or wholly out of it."""

    rows: tuple[NDArray[np.int64], ...]
    """P times the rows of one, in order."""
    within: NDArray[np.bool_]
    """(B, P), whether a set has a cell."""


def find_cells(sets: NDArray[np.bool_]) -> Cells:
    """Return the cells of sets (B, N): rows that are in the same sets."""
    within, cell = np.unique(sets, axis=1, return_inverse=True)
    order = np.argsort(cell.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(cell.ravel(), minlength=within.shape[1]))
    return Cells(rows=tuple(np.split(order, ends[:-1])), within=within)
