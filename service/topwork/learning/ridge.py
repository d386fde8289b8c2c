"""Ridge regression on class indicators in closed form, with exact addition and removal of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import FloatArray
from topwork.learning import cholesky

_BLOCK_ROWS = 4096
"""Rows per block; raising it uses more memory and adds rounding errors of float32 sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gram:
    """Sufficient statistics of ridge regression: sums over rows.

    Adding Gram matrices joins two sets of rows; subtracting removes rows, as if only the other
    rows had been summed.
    """

    products: FloatArray
    """(D, D), weighted sum of x x'."""
    cross_products: FloatArray
    """(D, C), weighted sum of x y', where y is the indicator of the class."""
    rows: FloatArray
    """(D,), weighted sum of x."""
    classes: FloatArray
    """(C,), weighted sum of y."""

    def __add__(self, other: Gram) -> Gram:
        """Return the Gram matrices of both sets of rows."""
        return Gram(
            products=self.products + other.products,
            cross_products=self.cross_products + other.cross_products,
            rows=self.rows + other.rows,
            classes=self.classes + other.classes,
        )

    def __sub__(self, other: Gram) -> Gram:
        """Return the Gram matrices without the rows of ``other``, which must be a subset."""
        return Gram(
            products=self.products - other.products,
            cross_products=self.cross_products - other.cross_products,
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
    """Return the Gram matrices of features (N, D), classes (N,) and non-negative weights (N,).

    ``rows`` limits them to these rows. ``centre`` (D,) is subtracted from the features: centred
    features lose less in single precision.
    """
    rows = np.arange(len(targets)) if rows is None else rows
    rows = rows[np.argsort(targets[rows], kind="stable")]
    width = features.shape[1]
    products: FloatArray = np.zeros((width, width), dtype=dtype)
    cross_products = np.zeros((classes, width))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        x: FloatArray = np.asarray(features[block], dtype=dtype)
        if centre is not None:
            x -= centre.astype(dtype)
        root: FloatArray = np.asarray(np.sqrt(weights[block, None]), dtype=dtype)
        x *= root
        products += x.T @ x  # BLAS uses the symmetry: half the work
        x *= root
        present, starts = np.unique(targets[block], return_index=True)
        cross_products[present] += np.add.reduceat(x, starts, axis=0)
    return Gram(
        products=products,
        cross_products=cross_products.T,
        rows=cross_products.sum(axis=0),
        classes=np.asarray(np.bincount(targets[rows], weights[rows], classes), dtype=np.float64),
    )


def solve(
    sums: Gram,
    strengths: Sequence[float],
    *,
    dtype: type[np.float32 | np.float64] = np.float64,
) -> list[tuple[FloatArray, FloatArray]]:
    """Return, for each strength, weights (C, D) and bias (C,) that minimise, over W and c,

    ||W||^2 / strength + sum_i s_i ||W x_i + c - y_i||^2; without rows they are 0.
    """  # noqa: D400 # the sentence ends in a formula
    total = max(sums.classes.sum(), 1e-9)
    mean = (sums.rows / total).astype(sums.products.dtype)
    centred = np.outer(sums.rows.astype(mean.dtype), -mean)
    centred += sums.products
    centred = centred.astype(dtype, copy=False)
    cross_products: FloatArray = (
        sums.cross_products - np.outer(sums.rows, sums.classes / total)
    ).astype(dtype)
    diagonal, solved = centred.diagonal().copy(), []
    for strength in strengths:
        np.fill_diagonal(centred, diagonal + dtype(1 / strength))
        weights = cholesky.solve(centred, cross_products).T
        solved.append((weights, (sums.classes - weights @ sums.rows) / total))
    return solved
