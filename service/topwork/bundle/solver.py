"""How is a whole grid of logistic regressions solved at once? By one batched L-BFGS.

Problem b is scikit-learn's L2-regularised multinomial logistic regression with sample weights s_b
and inverse regularisation C_b: over W and c, with logits z_i = W x_i + c,

    minimise  ||W||^2 / 2 + C_b * sum_i s_bi * (logsumexp(z_i) - z_i[y_i])

The problems share the features and differ in strength and weights (a fold is a weight of 0), so
one iteration for all of them together is two matrix products.

Shapes: B problems, C classes, N rows, D features, K = D + 1 columns, of which the last is constant
and makes the bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_MEMORY = 10
"""Steps that L-BFGS remembers."""

_ARMIJO = 1e-4
"""Share of the promised decrease that a step must bring (Nocedal & Wright, section 3.1)."""

_ABSENT = -30.0
"""Bias of a class without weight in a problem, where the optimum is at minus infinity."""

_NUMBERS = 2**27
"""Numbers in memory at once, about; a larger batch is solved in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The solutions of B problems, in the order given."""

    weights: Floats
    """(B, C, D)"""
    bias: Floats
    """(B, C)"""
    iterations: NDArray[np.int64]
    """(B,)"""
    decrement: Floats
    """(B,), estimated distance from the optimum: at most ``tolerance`` where converged."""


def balanced_weights(targets: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return weights (N,) of mean 1 whose sum is the same for every class that has rows."""
    counts = np.bincount(targets, minlength=classes)
    return np.asarray(len(targets) / (np.count_nonzero(counts) * counts[targets]))


def solve(
    features: Floats,
    targets: NDArray[np.int64],
    classes: int,
    *,
    sample_weights: Floats,
    strengths: Floats,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
    dtype: type[np.float32 | np.float64] = np.float64,
) -> Solution:
    """Return the optima for features (N, D), classes (N,), weights (B, N) and strengths C (B,).

    A problem stops when its Newton decrement sqrt(g' H^-1 g) (Boyd & Vandenberghe, Convex
    Optimization, section 9.5.1; H as L-BFGS knows it) is at most ``tolerance``. In words: when its
    logits are, in the mean square over rows and classes, about that far from the optimum's.
    float32 is good for a tolerance of 1e-3 and half the time.

    A cold start and a fixed order: the same input gives the same bytes. A class without weight in a
    problem gets weights 0 there, and a probability of practically 0. Raises ValueError.
    """
    mass = _class_mass(features, targets, classes, sample_weights, strengths)
    # The bias absorbs any shift of the features, so this changes no optimum; but it takes away the
    # largest eigenvalue by far: half the squared length of non-negative embeddings is their mean.
    centre = features.mean(axis=0, dtype=np.float64)
    x = np.ones((len(features), len(centre) + 1), dtype=dtype)
    np.subtract(features, centre, out=x[:, :-1], casting="same_kind")

    batch, rows, columns = len(strengths), *x.shape
    theta = np.zeros((batch, classes, columns), dtype=dtype)
    theta[..., -1] = np.where(mass > 0, 0, _ABSENT)
    iterations = np.zeros(batch, dtype=np.int64)
    decrement = np.zeros(batch, dtype=dtype)
    total = mass.sum(axis=1)
    part = max(1, _NUMBERS // (classes * (5 * rows + 2 * _MEMORY * columns)))
    for start in range(0, batch, part):
        some = slice(start, start + part)
        ridge = np.ones((len(total[some]), 1, columns)) / (total * strengths)[some, None, None]
        ridge[..., -1] = 0
        problems = _Problems(
            x=x,
            targets=targets,
            weights=(sample_weights[some] / total[some, None]).astype(dtype),
            ridge=ridge.astype(dtype),
        )
        theta[some], iterations[some], decrement[some] = _minimise(
            problems, theta[some], tolerance, max_iterations
        )
    weights = theta[..., :-1]
    return Solution(
        weights=weights,
        bias=theta[..., -1] - weights @ centre.astype(dtype),
        iterations=iterations,
        decrement=decrement,
    )


def _class_mass(
    features: Floats,
    targets: NDArray[np.int64],
    classes: int,
    sample_weights: Floats,
    strengths: Floats,
) -> Floats:
    """Return each class's weight in each problem (B, C), or raise ValueError for what is wrong."""
    rows, batch = len(features), len(strengths)
    for name, array, shape in (
        ("features", features, (rows, *features.shape[1:2])),
        ("targets", targets, (rows,)),
        ("sample_weights", sample_weights, (batch, rows)),
        ("strengths", strengths, (batch,)),
    ):
        if array.shape != shape or not array.size:
            raise ValueError(f"{name} has shape {array.shape}, not {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has a value that is not finite")
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets are {targets.min()} to {targets.max()}; classes: {classes}")
    if sample_weights.min() < 0 or strengths.min() <= 0:
        raise ValueError("sample_weights must be >= 0 and strengths > 0")
    mass = np.stack([np.bincount(targets, one, minlength=classes) for one in sample_weights])
    if not mass.any(axis=1).all():
        raise ValueError(f"sample_weights of problem {mass.any(axis=1).argmin()} are all 0")
    return mass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problems:
    """Problems divided by strength and total weight: a mean loss plus a small ridge."""

    x: Floats  # (N, K)
    targets: NDArray[np.int64]  # (N,)
    weights: Floats  # (B, N), rows sum to 1
    ridge: Floats  # (B, 1, K), the last column is 0

    def keep(self, those: NDArray[np.bool_]) -> _Problems:
        return replace(self, weights=self.weights[those], ridge=self.ridge[those])

    def logits(self, theta: Floats) -> Floats:
        """Return (B, C, N) for theta (B, C, K)."""
        batch, classes, columns = theta.shape
        return (theta.reshape(-1, columns) @ self.x.T).reshape(batch, classes, -1)

    def objective(self, theta: Floats, logits: Floats) -> tuple[Floats, Floats]:
        """Return the objectives (B,); turn logits (B, C, N) into probabilities, in place."""
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[:, self.targets, np.arange(len(self.targets))]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1)
        logits /= total[:, None]
        loss = np.log(total) - right
        return _dot(self.weights, loss) + _dot(self.ridge * theta, theta) / 2, logits

    def gradient(self, theta: Floats, probabilities: Floats) -> Floats:
        """Return (B, C, K); use up the probabilities (B, C, N)."""
        residual = probabilities
        residual *= self.weights[:, None]
        residual[:, self.targets, np.arange(len(self.targets))] -= self.weights
        batch, classes, rows = residual.shape
        product = residual.reshape(-1, rows) @ self.x
        return product.reshape(batch, classes, -1) + self.ridge * theta

    def curvature(self, probabilities: Floats) -> Floats:
        """Return (B, 1, K), about the diagonal of the Hessian, alike for all classes.

        The Hessian's diagonal is sum_i s_i p_ic (1 - p_ic) x_ij^2 + ridge_j. This takes the means
        of p (1 - p) and of x^2 apart, so that it costs no matrix product.
        """
        variance = 1 - np.einsum("bcn,bcn->bn", probabilities, probabilities)
        mean = _dot(self.weights, variance) / probabilities.shape[1]
        floor = np.finfo(mean.dtype).eps
        return np.maximum(mean, floor)[:, None, None] * (self.x * self.x).mean(axis=0) + self.ridge


def _minimise(problems, theta, tolerance, max_iterations):
    """Run L-BFGS from theta (B, C, K); return the end's theta, iterations (B,), decrement (B,)."""
    rows = len(problems.targets)
    end, live = theta.copy(), np.arange(len(theta))
    iterations, decrement = np.zeros(len(theta), dtype=np.int64), np.zeros(len(theta))
    logits = np.repeat(theta[..., -1:], rows, axis=2)
    value, probabilities = problems.objective(theta, logits.copy())
    curvature = problems.curvature(probabilities)
    gradient = problems.gradient(theta, probabilities)
    pairs = []
    for iteration in range(max_iterations + 1):
        direction = _newton_like(gradient, pairs, curvature)
        slope = _dot(gradient, direction)
        end[live], iterations[live], decrement[live] = theta, iteration, np.sqrt(abs(slope))
        going = -slope > tolerance**2
        if not going.any():
            break
        if not going.all():
            problems = problems.keep(going)
            live, theta, logits, value, gradient, direction, slope = (
                a[going] for a in (live, theta, logits, value, gradient, direction, slope)
            )
            pairs = [(s[going], y[going], sy[going]) for s, y, sy in pairs]
        change = problems.logits(direction)
        step = np.ones_like(slope)[:, None, None]
        slack = 8 * np.finfo(theta.dtype).eps * abs(value)
        while True:
            trial, probabilities = problems.objective(
                theta + step * direction, logits + step * change
            )
            short = trial > value + slack + _ARMIJO * step[:, 0, 0] * slope
            if not short.any():
                break
            step[short] /= 2
        theta = theta + step * direction
        logits += step * change
        value = trial
        curvature = problems.curvature(probabilities)
        before, gradient = gradient, problems.gradient(theta, probabilities)
        s, y = step * direction, gradient - before
        pairs = [*pairs, (s, y, _dot(s, y))][-_MEMORY:]
    return end, iterations, decrement


def _newton_like(gradient, pairs, curvature):
    q = -gradient
    alphas = []
    for s, y, sy in reversed(pairs):
        alphas.append((_dot(s, q) / sy)[:, None, None])
        q -= alphas[-1] * y
    if pairs:
        _, y, sy = pairs[-1]
        q *= (sy / _dot(y / curvature, y))[:, None, None]
    q /= curvature
    for s, y, sy in pairs:
        q += (alphas.pop() - (_dot(y, q) / sy)[:, None, None]) * s
    return q


def _dot(a: Floats, b: Floats) -> Floats:
    """Return the inner products (B,) of a and b, shaped alike (B, ...)."""
    return (a.reshape(len(a), 1, -1) @ b.reshape(len(b), -1, 1))[:, 0, 0]
