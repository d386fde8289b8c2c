"""The kinds of heads, each as one way to learn scores from any set of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.head import Fourier, Kernel, Scorer
from topwork.bundle.recipe import HeadKind
from topwork.errors import NotReady
from topwork.learning import cholesky, logistic, ridge
from topwork.learning.task import SUPPORT_ROWS, Task, balanced_weights

GRID_TOLERANCE = 1e-3
"""Of cross-validation's logistic regressions; 1e-2 moved log losses by more than strengths do."""

KERNEL_ROWS = 3_000
"""Rows up to which ``auto`` tries a kernel: its solve grows with their cube."""

WAVES = 2_048
"""Random features."""

GAMMA = 1.0
"""Of kernels, for features of mean squared length 1; half and double of it were no better."""

Floats = NDArray[np.floating]
Sets = NDArray[np.bool_]
"""(B, N), whether a set has a row."""


class Family(Protocol):
    """One kind of head."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """The inverse regularisations that cross-validation chooses from."""

    def solve(
        self, task: Task, sets: Sets, strengths: Sequence[float], *, final: bool
    ) -> list[list[Scorer]]:
        """Return a scorer for each strength and each set of the task's rows, in that order.

        A function of its input alone: cold start, fixed order. A class that a set has no row of
        never has the highest score. ``final`` asks for full precision.
        """


class Logistic:
    """Multinomial logistic regression, classes balanced by weight."""

    strengths = (3.0, 30.0, 300.0)

    def solve(
        self, task: Task, sets: Sets, strengths: Sequence[float], *, final: bool
    ) -> list[list[Scorer]]:
        """See Family."""
        weights = np.zeros(sets.shape)
        for row, one in zip(weights, sets, strict=True):
            row[one] = balanced_weights(task.targets[one], task.classes)
        solution = logistic.solve(
            task.features,
            task.targets,
            task.classes,
            sample_weights=np.tile(weights, (len(strengths), 1)),
            strengths=np.repeat(strengths, len(sets)),
            tolerance=1e-7 if final else GRID_TOLERANCE,
            dtype=np.float64 if final else np.float32,
        )
        scorers = [
            _scorer(one, bias) for one, bias in zip(solution.weights, solution.bias, strict=True)
        ]
        return [scorers[at : at + len(sets)] for at in range(0, len(scorers), len(sets))]


class Ridge:
    """Ridge regression on class indicators, from Gram matrices: a set is all rows less the others.

    Classes are balanced by the weights that they have in all rows together. Scores of the classes
    of a set sum to 1; that of another class is 0.
    """

    strengths = (2.0, 8.0)

    def solve(
        self, task: Task, sets: Sets, strengths: Sequence[float], *, final: bool
    ) -> list[list[Scorer]]:
        """See Family."""
        x, basis = task.features, None
        if len(x) < x.shape[1]:  # the same problem in the space that the rows span
            basis = np.linalg.qr(x.T.astype(np.float64))[0]  # (D, N)
            x = x @ basis
        balance = balanced_weights(task.targets, task.classes)

        def gram(rows: NDArray[np.bool_]) -> ridge.Gram:
            return ridge.gram(x[rows], task.targets[rows], task.classes, balance[rows])

        everything = gram(np.ones(len(x), dtype=bool))
        solved: list[list[Scorer]] = [[] for _ in strengths]
        for one in sets:
            sums = everything if one.all() else everything - gram(~one)
            found = ridge.solve(sums, strengths, dtype=np.float64 if final else np.float32)
            for scorers, (weights, bias) in zip(solved, found, strict=True):
                scorers.append(_scorer(weights if basis is None else weights @ basis.T, bias))
        return solved


class RandomFourier:
    """Ridge on random waves: a kernel for sets that are too large for one."""

    strengths = (2.0, 8.0)

    def solve(
        self, task: Task, sets: Sets, strengths: Sequence[float], *, final: bool
    ) -> list[list[Scorer]]:
        """See Family."""
        rng = np.random.default_rng(0)
        directions = rng.standard_normal((task.features.shape[1], WAVES)) * np.sqrt(2 * GAMMA)
        waves = Fourier(
            projection=directions.astype(np.float16).astype(np.float32),
            phase=rng.uniform(0, 2 * np.pi, WAVES).astype(np.float32),
        )
        expanded = replace(task, features=waves(task.features))
        solved = Ridge().solve(expanded, sets, strengths, final=final)
        return [[replace(one, expansion=waves) for one in scorers] for scorers in solved]


class KernelRidge:
    """Ridge regression on similarities to all rows: near neighbours count most.

    Scores of the classes of a set sum to 1; that of another class is 0.
    """

    strengths = (3.0, 30.0)

    def solve(
        self, task: Task, sets: Sets, strengths: Sequence[float], *, final: bool
    ) -> list[list[Scorer]]:
        """See Family. Raises NotReady if there are more rows than can be solved."""
        rows = len(task.targets)
        if rows > SUPPORT_ROWS:
            raise NotReady(
                f"a kernel head is for up to {SUPPORT_ROWS} images and there are {rows}; "
                "fit with another head",
                reason="TOO_MANY_IMAGES",
            )
        dtype = np.float64 if final else np.float32
        kernel = Kernel(support=task.support, gamma=GAMMA)
        similar: Floats = _similarities(kernel).astype(dtype)
        solved: list[list[Scorer]] = [[] for _ in strengths]
        for one in sets:
            targets = task.targets[one]
            present = np.bincount(targets, minlength=task.classes) > 0
            level = present / (int(np.count_nonzero(present)) or 1)
            aims: Floats = (np.eye(task.classes)[targets] - level).astype(dtype)
            system = similar[np.ix_(one, one)]
            noise = 1 / balanced_weights(targets, task.classes)
            for scorers, strength in zip(solved, strengths, strict=True):
                np.fill_diagonal(system, 1 + noise / strength)
                weights = np.zeros((task.classes, rows))
                weights[:, one] = cholesky.solve(system, aims).T
                scorers.append(_scorer(weights, level, kernel))
        return solved


class NearestMean:
    """The nearest class mean: nothing to choose, so it is safe with a handful of images."""

    strengths = (1.0,)

    def solve(
        self, task: Task, sets: Sets, strengths: Sequence[float], *, final: bool
    ) -> list[list[Scorer]]:
        """See Family. |x - m|^2 is linear in x but for |x|^2, which all classes share."""
        del final  # a closed form has one precision
        scorers = []
        for one in sets:
            x, indicator = task.features[one], np.eye(task.classes)[task.targets[one]]
            counts = indicator.sum(axis=0)
            means = indicator.T @ x / np.maximum(counts, 1)[:, None]
            bias = -np.square(means).sum(axis=1) / 2
            absent = counts == 0
            if absent.any() and not absent.all():  # below the average, wherever x is
                means[absent] = means[~absent].mean(axis=0)
                bias[absent] = bias[~absent].min() - 1
            scorers.append(_scorer(means, bias))
        return [scorers for _ in strengths]


FAMILIES: dict[HeadKind, Family] = {
    "nearest_mean": NearestMean(),
    "ridge": Ridge(),
    "logistic": Logistic(),
    "kernel": KernelRidge(),
    "fourier": RandomFourier(),
}
"""From the cheapest to serve to the dearest."""


def _scorer(weights: Floats, bias: Floats, expansion: Kernel | None = None) -> Scorer:
    return Scorer(
        weights=weights.astype(np.float32), bias=bias.astype(np.float32), expansion=expansion
    )


def _similarities(kernel: Kernel) -> Floats:
    """Return the similarities (M, M) of a support's points to each other."""
    points = kernel.support.points
    lengths = np.square(points).sum(axis=1)
    found = points @ points.T * np.float32(-2)
    found += lengths
    found += lengths[:, None]
    np.exp(np.float32(-kernel.gamma) * np.maximum(found, 0, out=found), out=found)
    return found
