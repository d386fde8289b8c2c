"""Ridge regression on class indicators, in closed form, with rows added and removed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.learning import cholesky

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gram:
    """All that ridge regression needs of its rows: sums over them, in double precision.

    So two sets of rows are put together by adding their Gram matrices, and rows are taken out by
    subtracting theirs: what remains is what the other rows alone would give.
    """

    products: NDArray[np.float64]
    """(D, D), the weighted sum of x x'."""
    aims: NDArray[np.float64]
    """(D, C), that of x y', y being the indicator of the class."""
    rows: NDArray[np.float64]
    """(D,), that of x."""
    classes: NDArray[np.float64]
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


def gram(features: Floats, targets: NDArray[np.int64], classes: int, weights: Floats) -> Gram:
    """Return the Gram matrices of features (N, D), classes (N,) and weights (N,), none negative."""
    root = np.sqrt(weights.astype(np.float64))
    x = features * root[:, None]
    y = np.eye(classes)[targets] * root[:, None]
    return Gram(
        products=x.T @ x,  # of a matrix with itself, which takes half the work
        aims=x.T @ y,
        rows=root @ x,
        classes=root @ y,
    )


def solve(
    sums: Gram,
    strengths: Sequence[float],
    *,
    dtype: type[np.float32 | np.float64] = np.float64,
) -> list[tuple[Floats, Floats]]:
    """Return, for each strength, weights (C, D) and bias (C,) that minimise, over W and c,

    ||W||^2 / strength + sum_i s_i ||W x_i + c - y_i||^2; without rows all is 0.
    """  # noqa: D400 # the sentence ends in a formula
    total = max(sums.classes.sum(), 1e-9)
    centred: Floats = (sums.products - np.outer(sums.rows, sums.rows / total)).astype(dtype)
    aims: Floats = (sums.aims - np.outer(sums.rows, sums.classes / total)).astype(dtype)
    diagonal, solved = centred.diagonal().copy(), []
    for strength in strengths:
        np.fill_diagonal(centred, diagonal + 1 / strength)
        weights = cholesky.solve(centred, aims).T
        solved.append((weights, (sums.classes - weights @ sums.rows) / total))
    return solved
