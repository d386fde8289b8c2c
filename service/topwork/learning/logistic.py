"""Logistic regression for a grid of strengths at once, by one batched L-BFGS.

Problem b is scikit-learn's L2-regularised multinomial logistic regression with sample weights s_b
and inverse regularisation C_b: over W and c, with logits z_i = W x_i + c,

    minimise  ||W||^2 / 2 + C_b * sum_i s_bi * (logsumexp(z_i) - z_i[y_i])

The problems share the features and differ in strength and weights (rows of the held-out fold have
weight 0), so an iteration of all problems takes two matrix products.

Shapes: B problems, C classes, N rows, D features, K = D + 1 columns: the last is the bias. Rows are
multiplied in P parts of R rows; the last part is filled up with rows of zeros and weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import FloatArray

_MEMORY = 10
"""Number of steps in the L-BFGS history."""

_ARMIJO = 1e-4
"""Sufficient decrease: smallest share of the predicted decrease that a step must reach."""

_BIAS = 0.2
"""Length of the bias column relative to centred rows: about that of a leading principal axis.

Raising it to 1 makes the curvature along the bias dominate, and doubles the iterations.
"""

_ABSENT_BIAS = -30.0
"""Bias of a class without weight in a problem; its optimum would be minus infinity."""

_MAX_CONTRASTS = 8
"""Largest number of classes for which theta is written in contrasts, with one row less."""

_BLOCK_ROWS = 4096
"""Rows centred, or parts of rows summed, per block; raising it uses more memory."""

_UNPACKED = 10**6
"""Largest product of the three sides of a product of matrices in parts; see ``_rows_per_part``.

Below it OpenBLAS does not copy its input on processors with AVX512: both products with 10 columns
took 1.3 ms instead of 2.9 for 2,000 rows of 1,280 features. On other processors, which copy it
always, parts took as long as one product.
"""

_FEWEST_ROWS = 32
"""Smallest number of rows in a part; below it one product of all rows is faster."""

_BATCH_NUMBERS = 2**27
"""Approximate count of numbers in memory; a larger batch is solved in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Solutions of B problems, in input order."""

    weights: FloatArray
    """(B, C, D)"""
    bias: FloatArray
    """(B, C)"""
    iterations: NDArray[np.int64]
    """(B,)"""
    decrement: FloatArray
    """(B,), estimated distance from the optimum: at most ``tolerance`` if converged."""


def solve(
    features: FloatArray,
    targets: NDArray[np.int64],
    classes: int,
    *,
    sample_weights: FloatArray,
    strengths: FloatArray,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
    dtype: type[np.float32 | np.float64] = np.float64,
) -> Solution:
    """Return the optima for features (N, D), classes (N,), weights (B, N) and strengths C (B,).

    A problem stops when its Newton decrement sqrt(g' H^-1 g) (Boyd & Vandenberghe, Convex
    Optimization, section 9.5.1; H as estimated by L-BFGS) is at most ``tolerance``, which is about
    the root mean square distance of its logits from the optimum's. float32 takes half the time and
    supports tolerances down to 1e-5.

    A cold start and a fixed order: the same input gives the same bytes. A class without weight in a
    problem gets weights 0 and a probability of nearly 0; if no class has weight, all are equally
    probable. Raises ValueError.
    """
    mass = _class_mass(features, targets, classes, sample_weights, strengths)
    # The bias absorbs any shift of the features, so centring changes no optimum. But it removes by
    # far the largest eigenvalue: half the squared length of non-negative rows is their mean.
    centre = features.mean(axis=0, dtype=np.float64)
    batch, rows, total = len(strengths), len(features), mass.sum(axis=1, keepdims=True)  # (B, 1)
    part_rows = _rows_per_part(rows, batch * classes * (len(centre) + 1))
    filled = -(-rows // part_rows) * part_rows
    x: FloatArray = np.zeros((filled, len(centre) + 1), dtype=dtype)
    for start in range(0, rows, _BLOCK_ROWS):  # avoids a second copy of all rows
        block = slice(start, min(start + _BLOCK_ROWS, rows))
        x[block, :-1] = features[block] - centre
    unit = _BIAS * (float(np.sqrt(_lengths(x[:rows]).mean())) or 1.0)
    x[:rows, -1] = unit
    targets, sample_weights = (
        np.pad(targets, (0, filled - rows)),
        np.pad(sample_weights, ((0, 0), (0, filled - rows))),
    )

    total[total == 0] = 1
    ridge = np.repeat(1 / (total * strengths[:, None]), x.shape[1], axis=1)
    ridge[:, -1] = 0
    contrasts: FloatArray = np.asarray(_contrasts(classes), dtype=dtype)
    theta = np.zeros((batch, contrasts.shape[1], x.shape[1]), dtype=dtype)
    theta[..., -1] = np.where(mass > 0, 0, _ABSENT_BIAS / unit) @ contrasts
    iterations, decrement = np.zeros(batch, dtype=np.int64), np.zeros(batch)

    size = max(1, _BATCH_NUMBERS // (classes * (5 * x.shape[0] + 2 * _MEMORY * x.shape[1])))
    for start in range(0, batch, size):
        part = slice(start, start + size)
        problems = _Problems(
            x=x.reshape(-1, part_rows, x.shape[1]),
            targets=targets,
            weights=(sample_weights[part] / total[part]).astype(dtype),
            ridge=ridge[part, None].astype(dtype),
            contrasts=contrasts,
        )
        theta[part], iterations[part], decrement[part] = _minimise(
            problems, theta[part], tolerance, max_iterations
        )
    theta = contrasts @ theta
    weights = theta[..., :-1]
    bias = (theta[..., -1] * unit - weights @ centre).astype(dtype)
    return Solution(weights=weights, bias=bias, iterations=iterations, decrement=decrement)


def _rows_per_part(rows: int, numbers: int) -> int:
    """Return the rows R of a part, a power of 2 or all ``rows``, for ``numbers`` in a solution.

    It must depend on the problem alone: sums of other parts round differently.
    """
    fitting = 1 << max(_UNPACKED // numbers, 1).bit_length() - 1
    return fitting if _FEWEST_ROWS <= fitting < rows else rows


def _class_mass(
    features: FloatArray,
    targets: NDArray[np.int64],
    classes: int,
    sample_weights: FloatArray,
    strengths: FloatArray,
) -> FloatArray:
    """Return each class's weight in each problem (B, C). Raises ValueError for invalid input."""
    rows, batch = len(features), len(strengths)
    for name, array, shape in (
        ("features", features, (rows, features.shape[-1])),
        ("targets", targets, (rows,)),
        ("sample_weights", sample_weights, (batch, rows)),
        ("strengths", strengths, (batch,)),
    ):
        if array.shape != shape or not array.size:
            raise ValueError(f"{name} has shape {array.shape}, not a non-empty {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has a value that is not finite")
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets are {targets.min()} to {targets.max()}; classes: {classes}")
    if sample_weights.min() < 0 or strengths.min() <= 0:
        raise ValueError("sample_weights must be >= 0 and strengths > 0")
    return np.asarray(sample_weights @ np.eye(classes)[targets])


def _contrasts(classes: int) -> FloatArray:
    """Return orthonormal columns (C, E), the basis of theta's rows.

    Softmax ignores a common shift, and the penalty makes it 0: the rows of an optimum sum to 0, as
    those of every gradient do. So C - 1 rows (Helmert contrasts) give the same path at a lower
    cost, which matters for few classes.
    """
    if classes > _MAX_CONTRASTS or classes == 1:
        return np.eye(classes)
    columns = np.triu(np.ones((classes, classes - 1)))
    columns[np.arange(1, classes), np.arange(classes - 1)] = -np.arange(1, classes)
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problems:
    """Objectives, each divided by strength and total weight: a mean loss plus a small ridge.

    Values with one number per problem, such as the objective, have shape (B, 1, 1) here and below.
    """

    x: FloatArray
    """(P, R, K); N = P * R below."""
    targets: NDArray[np.int64]
    """(N,)"""
    weights: FloatArray
    """(B, N); every row sums to 1."""
    ridge: FloatArray
    """(B, 1, K); 0 in the last column, since the bias is free."""
    contrasts: FloatArray
    """(C, E), orthonormal: maps theta's E rows to the C classes."""

    def logits(self, theta: FloatArray) -> FloatArray:
        """Return (B, C, N) for theta (B, E, K)."""
        batch, rows, columns = theta.shape
        products = np.empty((batch * rows, len(self.targets)), dtype=theta.dtype)
        np.matmul(theta.reshape(-1, columns), self.x.swapaxes(1, 2), out=self._in_parts(products))
        logits = products.reshape(batch, rows, -1)
        return logits if rows == len(self.contrasts) else self.contrasts @ logits

    def objective(self, theta: FloatArray, logits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the objectives and the probabilities (B, C, N), which overwrite the logits."""
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[:, self.targets, np.arange(len(self.targets))]
        p = np.exp(logits, out=logits)
        total = p.sum(axis=1)
        p /= total[:, None]
        return _dot(self.weights, np.log(total) - right) + _dot(self.ridge * theta, theta) / 2, p

    def gradient(self, theta: FloatArray, p: FloatArray) -> FloatArray:
        """Return the gradients (B, E, K); overwrites the probabilities (B, C, N)."""
        p *= self.weights[:, None]
        p[:, self.targets, np.arange(len(self.targets))] -= self.weights
        if theta.shape[1] < len(self.contrasts):
            p = self.contrasts.T @ p
        parts = self._in_parts(p.reshape(-1, len(self.targets)))
        gradient = self.ridge * theta
        size = max(1, _BLOCK_ROWS // self.x.shape[1])
        for start in range(0, len(parts), size):
            block = slice(start, start + size)
            gradient += (parts[block] @ self.x[block]).sum(axis=0).reshape(theta.shape)
        return gradient

    def _in_parts(self, array: FloatArray) -> FloatArray:
        """Return a view (P, M, R) of an array (M, N)."""
        return np.asarray(array.reshape(len(array), *self.x.shape[:2]).swapaxes(0, 1))


def _minimise(
    problems: _Problems, theta: FloatArray, tolerance: float, max_iterations: int
) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
    """Return the optimal theta (B, C, K), the iterations (B,) and the decrements (B,).

    Nocedal & Wright, Numerical Optimization, algorithm 7.5 with backtracking (algorithm 3.1). As
    logits are linear in theta, the search along a direction takes no matrix product.
    """
    solved, unsolved, decrement = theta.copy(), np.arange(len(theta)), np.zeros(len(theta))
    iterations = np.zeros(len(theta), dtype=np.int64)
    logits = problems.logits(theta)
    value, p = problems.objective(theta, logits.copy())
    gradient = problems.gradient(theta, p)
    pairs: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    # Upper bound of the Hessian's eigenvalues (Boehning 1992, AISM 44).
    steepest = _lengths(problems.x.reshape(-1, theta.shape[-1])).max() / 2 + problems.ridge[..., :1]
    scale, reliable = 1 / steepest, np.ones_like(value, dtype=bool)
    for iteration in range(max_iterations + 1):
        direction = -_inverse_hessian_times(gradient, pairs, scale)
        slope = _dot(gradient, direction)
        solved[unsolved], iterations[unsolved] = theta, iteration
        decrement[unsolved] = np.sqrt(abs(slope)).ravel()
        unfinished = (reliable & (-slope > tolerance**2)).ravel()
        if not unfinished.any():
            break
        if not unfinished.all():
            unsolved, weights, ridge = (
                unsolved[unfinished],
                problems.weights[unfinished],
                problems.ridge[unfinished],
            )
            problems = replace(problems, weights=weights, ridge=ridge)
            pairs = [(s[unfinished], y[unfinished], rho[unfinished]) for s, y, rho in pairs]
            theta, logits, value, gradient, direction, slope, steepest = (
                a[unfinished] for a in (theta, logits, value, gradient, direction, slope, steepest)
            )
        change = problems.logits(direction)
        step = np.ones_like(slope)
        slack = 8 * np.finfo(value.dtype).eps * abs(value)  # a smaller increase is rounding
        while True:
            trial, p = problems.objective(theta + step * direction, logits + step * change)
            rejected = trial > value + _ARMIJO * step * slope + slack
            if not rejected.any():
                break
            step[rejected] /= 2
        s, before = step * direction, gradient
        theta, logits, value = theta + s, logits + step * change, trial
        gradient = problems.gradient(theta, p)
        y = gradient - before
        sy, yy = _dot(s, y), np.maximum(_dot(y, y), 1e-30)
        # Convexity guarantees sy >= yy / steepest. Less than half of it is rounding: stop.
        reliable = sy > yy / steepest / 2
        scale = np.where(reliable, sy / yy, 1 / steepest)
        pairs = [*pairs, (s, y, reliable / np.where(reliable, sy, 1))][-_MEMORY:]
    return solved, iterations, decrement


def _inverse_hessian_times(
    gradient: FloatArray, pairs: list[tuple[FloatArray, FloatArray, FloatArray]], scale: FloatArray
) -> FloatArray:
    """Return H^-1 g (B, C, K) by Nocedal & Wright's algorithm 7.4: pairs (s, y, 1 / s'y)."""
    result, alphas = gradient.copy(), []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * _dot(s, result))
        result -= alphas[-1] * y
    result *= scale
    for s, y, rho in pairs:
        result += (alphas.pop() - rho * _dot(y, result)) * s
    return result


def _dot(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the inner products (B, 1, 1) of a and b, both (B, ...)."""
    return a.reshape(len(a), 1, -1) @ b.reshape(len(b), -1, 1)


def _lengths(x: FloatArray) -> FloatArray:
    """Return the squared length (N,) of each row."""
    return np.asarray(np.einsum("nk,nk->n", x, x))
