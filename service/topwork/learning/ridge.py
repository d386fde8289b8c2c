"""Ridge regression on class indicators, in closed form, with rows added and removed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import FloatArray
from topwork.learning import cholesky

_ROWS = 4096
"""Rows whose products are summed at once: copies stay small, and sums of float32 exact enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gram:
    """All that ridge regression needs of its rows: sums over them.

    So two sets of rows are put together by adding their Gram matrices, and rows are taken out by
    subtracting theirs: what remains is what the other rows alone would give.
    """

    products: FloatArray
    """(D, D), the weighted sum of x x'."""
    aims: FloatArray
    """(D, C), that of x y', y being the indicator of the class."""
    rows: FloatArray
    """(D,), that of x."""
    classes: FloatArray
    """(C,), that of y."""

    def __add__(self, other: Gram) -> Gram:
        """Return that of both sets of rows."""
        return Gram(
            products=self.products + other.products,
            aims=self.aims + other.aims,
            rows=self.rows + other.rows,
            classes=self.classes + other.classes,
        )

    def __sub__(self, other: Gram) -> Gram:
        """Return that of the rows without the other's, which must be among them."""
        return Gram(
            products=self.products - other.products,
            aims=self.aims - other.aims,
            rows=self.rows - other.rows,
            classes=self.classes - other.classes,
        )


def gram(
    features: FloatArray,
    targets: NDArray[np.int64],
    classes: int,
    weights: FloatArray,
    *,
    rows: NDArray[np.int64] | None = None,
    centre: FloatArray | None = None,
    dtype: type[np.float32 | np.float64] = np.float64,
) -> Gram:
    """Return the Gram matrices of features (N, D), classes (N,) and weights (N,), none negative.

    Of ``rows`` only, if given. ``centre`` (D,) is subtracted from features; of centred ones single
    precision keeps more.
    """
    rows = np.arange(len(targets)) if rows is None else rows
    rows = rows[np.argsort(targets[rows], kind="stable")]
    width = features.shape[1]
    products: FloatArray = np.zeros((width, width), dtype=dtype)
    aims = np.zeros((classes, width))
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        x: FloatArray = np.asarray(features[block], dtype=dtype)
        if centre is not None:
            x -= centre.astype(dtype)
        root: FloatArray = np.asarray(np.sqrt(weights[block, None]), dtype=dtype)
        x *= root
        products += x.T @ x  # of a matrix with itself, which takes half the work
        x *= root
        some, starts = np.unique(targets[block], return_index=True)
        aims[some] += np.add.reduceat(x, starts, axis=0)
    return Gram(
        products=products,
        aims=aims.T,
        rows=aims.sum(axis=0),
        classes=np.asarray(np.bincount(targets[rows], weights[rows], classes), dtype=np.float64),
    )


def solve(
    sums: Gram,
    strengths: Sequence[float],
    *,
    dtype: type[np.float32 | np.float64] = np.float64,
) -> list[tuple[FloatArray, FloatArray]]:
    """Return, for each strength, weights (C, D) and bias (C,) that minimise, over W and c,

    ||W||^2 / strength + sum_i s_i ||W x_i + c - y_i||^2; without rows all is 0.
    """  # noqa: D400 # the sentence ends in a formula
    total = max(sums.classes.sum(), 1e-9)
    mean = (sums.rows / total).astype(sums.products.dtype)
    centred = np.outer(sums.rows.astype(mean.dtype), -mean)
    centred += sums.products
    centred = centred.astype(dtype, copy=False)
    aims: FloatArray = (sums.aims - np.outer(sums.rows, sums.classes / total)).astype(dtype)
    diagonal, solved = centred.diagonal().copy(), []
    for strength in strengths:
        np.fill_diagonal(centred, diagonal + dtype(1 / strength))
        weights = cholesky.solve(centred, aims).T
        solved.append((weights, (sums.classes - weights @ sums.rows) / total))
    return solved
