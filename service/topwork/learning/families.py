"""The kinds of heads, each as one way to learn scores from any set of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import FloatArray
from topwork.bundle.head import Kernel, Scorer
from topwork.bundle.recipe import HeadKind
from topwork.errors import NotReady
from topwork.learning import cholesky, logistic, ridge
from topwork.learning.cells import find_cells
from topwork.learning.sharing import ALONE, Threads
from topwork.learning.task import SUPPORT_ROWS, Task, balanced_weights

GRID_TOLERANCE = 1e-3
"""Of cross-validation's logistic regressions; 1e-2 moved log losses by more than strengths do."""

FINAL_TOLERANCE = 1e-5
"""Of the head's own: moves no probability by more than 3e-5, where double precision's 1e-7 takes
four times as long and scikit-learn's solver at 1e-8 is 7e-5 from the optimum."""

KERNEL_ROWS = 3_000
"""Rows up to which ``auto`` tries a kernel: its solve grows with their cube."""

COLUMNS = 40
"""Classes of logistic regressions that are solved together, about.

A product with 15 columns took 0.6 times as long as one with 45, which took no longer a column than
one with 75.
"""

Sets = NDArray[np.bool_]
"""(B, N), whether a set has a row."""


class Family(Protocol):
    """One kind of head."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """The inverse regularisations that cross-validation chooses from."""

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = ALONE,
    ) -> list[list[Scorer]]:
        """Return a scorer for each strength and each set of the task's rows, in that order.

        A function of its input alone: cold start, fixed order. A class that a set has no row of
        never has the highest score. ``final`` asks for full precision. ``threads`` share the work
        and change nothing else.
        """


class Logistic:
    """Multinomial logistic regression, classes balanced by weight."""

    strengths = (3.0, 30.0, 300.0)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = ALONE,
    ) -> list[list[Scorer]]:
        """See Family."""
        size = -(-COLUMNS // (task.classes * len(strengths)))
        parts = [sets[start : start + size] for start in range(0, len(sets), size)]
        solved = threads.map(lambda part: _regressions(task, part, strengths, final), parts)
        return [list(chain(*scorers)) for scorers in zip(*solved, strict=True)]


class Ridge:
    """Ridge regression on class indicators, from Gram matrices: a set is all rows less the others.

    Classes are balanced by the weights that they have in all rows together. Scores of the classes
    of a set sum to 1; that of another class is 0.
    """

    strengths = (2.0, 8.0)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = ALONE,
    ) -> list[list[Scorer]]:
        """See Family."""
        x, basis = task.features, None
        if len(x) < x.shape[1]:  # the same problem in the space that the rows span
            basis = np.linalg.qr(x.T.astype(np.float64))[0].astype(x.dtype)  # (D, N)
            x = x @ basis
        del final  # single precision moves no score by more than 3e-6
        balance = balanced_weights(task.targets, task.classes)
        centre = x.mean(axis=0, dtype=np.float64)
        cells = find_cells(sets)
        parts = [(at, rows) for at, cell in enumerate(cells.rows) for rows in _parts(cell)]
        grams = threads.map(
            lambda part: ridge.gram(
                x,
                task.targets,
                task.classes,
                balance,
                rows=part[1],
                centre=centre,
                dtype=np.float32,
            ),
            parts,
        )
        everything = reduce(ridge.Gram.__add__, grams)

        def solve(inside: NDArray[np.bool_]) -> list[Scorer]:
            outside = [one for one, (at, _) in zip(grams, parts, strict=True) if not inside[at]]
            sums = reduce(ridge.Gram.__sub__, outside, everything)
            scorers = []
            for weights, bias in ridge.solve(sums, strengths, dtype=np.float32):
                scorers.append(
                    _scorer(
                        weights if basis is None else weights @ basis.T, bias - weights @ centre
                    )
                )
            return scorers

        return _by_strength(threads.map(solve, list(cells.within)))


class RandomFourier:
    """Ridge on random waves: a kernel for sets that are too large for one."""

    strengths = (2.0, 8.0)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = ALONE,
    ) -> list[list[Scorer]]:
        """See Family."""
        waves = task.waves
        expanded = replace(task, features=task.expanded(waves))
        solved = Ridge().solve(expanded, sets, strengths, final=final, threads=threads)
        return [[replace(one, expansion=waves) for one in scorers] for scorers in solved]


class KernelRidge:
    """Ridge regression on similarities to all rows: near neighbours count most.

    Scores of the classes of a set sum to 1; that of another class is 0.
    """

    strengths = (3.0, 30.0)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = ALONE,
    ) -> list[list[Scorer]]:
        """See Family. Raises NotReady if there are more rows than can be solved."""
        rows = len(task.targets)
        if rows > SUPPORT_ROWS:
            raise NotReady(
                f"a kernel head is for up to {SUPPORT_ROWS} images and there are {rows}; "
                "fit with another head",
                reason="TOO_MANY_IMAGES",
            )
        kernel, similar = task.kernel, task.similarities

        def solve(inside: NDArray[np.bool_]) -> list[Scorer]:
            targets, mine = task.targets[inside], np.flatnonzero(inside)
            present = np.bincount(targets, minlength=task.classes) > 0
            level = present / (int(np.count_nonzero(present)) or 1)
            aims: FloatArray = np.eye(task.classes)[targets] - level
            system = similar[mine].take(mine, axis=1)
            noise = 1 / balanced_weights(targets, task.classes)
            scorers = []
            for strength in strengths:
                np.fill_diagonal(system, 1 + noise / strength)
                weights = np.zeros((task.classes, rows))
                weights[:, mine] = cholesky.solve(system, aims, refined=final).T
                scorers.append(_scorer(weights, level, kernel))
            return scorers

        return _by_strength(threads.map(solve, list(sets)))


class NearestMean:
    """The nearest class mean: nothing to choose, so it is safe with a handful of images."""

    strengths = (1.0,)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = ALONE,
    ) -> list[list[Scorer]]:
        """See Family. |x - m|^2 is linear in x but for |x|^2, which all classes share."""
        del final  # a closed form has one precision
        cells = find_cells(sets)
        sums = np.array(threads.map(task.class_sums, cells.rows))  # (P, C, D)
        counts = np.array(
            [np.bincount(task.targets[rows], minlength=task.classes) for rows in cells.rows]
        )
        scorers = []
        for inside in cells.within:
            mine = counts[inside].sum(axis=0)
            means = sums[inside].sum(axis=0) / np.maximum(mine, 1)[:, None]
            bias = -np.square(means).sum(axis=1) / 2
            absent = mine == 0
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


def _scorer(weights: FloatArray, bias: FloatArray, expansion: Kernel | None = None) -> Scorer:
    return Scorer(
        weights=weights.astype(np.float32), bias=bias.astype(np.float32), expansion=expansion
    )


def _by_strength(solved: list[list[Scorer]]) -> list[list[Scorer]]:
    """Return what was solved set by set, strength by strength."""
    return [list(scorers) for scorers in zip(*solved, strict=True)]


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return rows in up to four parts, for as many threads."""
    return np.array_split(rows, min(4, max(1, len(rows) // 4096)))


def _regressions(
    task: Task, sets: Sets, strengths: Sequence[float], final: bool
) -> list[list[Scorer]]:
    weights = np.zeros(sets.shape)
    for row, one in zip(weights, sets, strict=True):
        row[one] = balanced_weights(task.targets[one], task.classes)
    solution = logistic.solve(
        task.features,
        task.targets,
        task.classes,
        sample_weights=np.tile(weights, (len(strengths), 1)),
        strengths=np.repeat(strengths, len(sets)),
        tolerance=FINAL_TOLERANCE if final else GRID_TOLERANCE,
        dtype=np.float32,
    )
    scorers = [
        _scorer(one, bias) for one, bias in zip(solution.weights, solution.bias, strict=True)
    ]
    return [scorers[at : at + len(sets)] for at in range(0, len(scorers), len(sets))]
