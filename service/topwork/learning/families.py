"""Families of heads, each of which learns scores from any set of rows."""

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
from topwork.learning import cholesky, logistic, ridge
from topwork.learning.cells import find_cells
from topwork.learning.parallel import SINGLE_THREAD, Threads
from topwork.learning.task import Task, balanced_weights

GRID_TOLERANCE = 1e-3
"""Tolerance of logistic regression in cross-validation.

Raising it to 1e-2 changes log losses by more than the choice of a strength.
"""

FINAL_TOLERANCE = 1e-5
"""Tolerance of the final logistic regression: probabilities are within 3e-5 of the optimum.

Lowering it to 1e-7 needs double precision and four times as long; scikit-learn's solver at 1e-8 is
7e-5 from the optimum.
"""

COLUMNS = 20
"""Approximate number of columns (classes times problems) of logistic regression per batch.

Raising it leaves threads idle. The time per column of a product of 2,000 rows was 0.2 ms with 5
columns, 0.12 with 20 and 0.12 with 40.
"""

Sets = NDArray[np.bool_]
"""(B, N), True if the set contains the row."""


class Family(Protocol):
    """Kind of head with its solver."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """Inverse regularisation strengths, from which cross-validation chooses."""

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = SINGLE_THREAD,
    ) -> list[list[Scorer]]:
        """Return a scorer for each strength and each set of the task's rows, in that order.

        A function of its input alone: cold start, fixed order. A class without a row in a set never
        has the highest score. ``final`` requests full precision. The number of ``threads`` does not
        change the result.
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
        threads: Threads = SINGLE_THREAD,
    ) -> list[list[Scorer]]:
        """See Family."""
        size = -(-COLUMNS // (task.classes * len(strengths)))
        parts = [sets[start : start + size] for start in range(0, len(sets), size)]
        solved = threads.map(lambda part: _logistic_scorers(task, part, strengths, final), parts)
        return [list(chain(*scorers)) for scorers in zip(*solved, strict=True)]


class Ridge:
    """Ridge regression on class indicators, from Gram matrices: a set is all rows less the others.

    Classes are balanced by their weights in all rows. The scores of a set's classes sum to 1; the
    score of another class is 0.
    """

    strengths = (2.0, 8.0)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = SINGLE_THREAD,
    ) -> list[list[Scorer]]:
        """See Family."""
        x, basis = task.features, None
        if len(x) < x.shape[1]:  # the same problem in the row space
            basis = np.linalg.qr(x.T.astype(np.float64))[0].astype(x.dtype)  # (D, N)
            x = x @ basis
        del final  # single precision changes scores by at most 3e-6
        balance = balanced_weights(task.targets, task.classes)
        centre = x.mean(axis=0, dtype=np.float64)
        cells = find_cells(sets)
        parts = [(at, rows) for at, cell in enumerate(cells.rows) for rows in _split(cell)]
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

        def solve(members: NDArray[np.bool_]) -> list[Scorer]:
            excluded = [gram for gram, (at, _) in zip(grams, parts, strict=True) if not members[at]]
            sums = reduce(ridge.Gram.__sub__, excluded, everything)
            scorers = []
            for weights, bias in ridge.solve(sums, strengths, dtype=np.float32):
                scorers.append(
                    make_scorer(
                        weights if basis is None else weights @ basis.T, bias - weights @ centre
                    )
                )
            return scorers

        return _by_strength(threads.map(solve, list(cells.within)))


class RandomFourier:
    """Ridge regression on random Fourier features: approximates a kernel for large sets."""

    strengths = (2.0, 8.0)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = SINGLE_THREAD,
    ) -> list[list[Scorer]]:
        """See Family."""
        fourier = task.fourier
        expanded = replace(task, features=task.expanded(fourier))
        solved = Ridge().solve(expanded, sets, strengths, final=final, threads=threads)
        return [[replace(scorer, expansion=fourier) for scorer in scorers] for scorers in solved]


class KernelRidge:
    """Kernel ridge regression: ridge regression on similarities to all rows.

    The scores of a set's classes sum to 1; the score of another class is 0. Large tasks have
    landmarks instead of all rows; see Task.
    """

    strengths = (3.0, 30.0)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = SINGLE_THREAD,
    ) -> list[list[Scorer]]:
        """See Family."""
        if task.is_large:
            return self._solve_large(task, sets, strengths, final, threads)
        rows = len(task.targets)
        kernel, similarities = task.kernel, task.similarities

        def solve(members: NDArray[np.bool_]) -> list[Scorer]:
            targets, own_rows = task.targets[members], np.flatnonzero(members)
            present = np.bincount(targets, minlength=task.classes) > 0
            level = present / (int(np.count_nonzero(present)) or 1)
            right_sides: FloatArray = np.eye(task.classes)[targets] - level
            system = similarities[own_rows].take(own_rows, axis=1)
            noise = 1 / balanced_weights(targets, task.classes)
            scorers = []
            for strength in strengths:
                np.fill_diagonal(system, 1 + noise / strength)
                weights = np.zeros((task.classes, rows))
                weights[:, own_rows] = cholesky.solve(system, right_sides, refined=final).T
                scorers.append(make_scorer(weights, level, kernel))
            return scorers

        return _by_strength(threads.map(solve, list(sets)))

    def _solve_large(
        self, task: Task, sets: Sets, strengths: Sequence[float], final: bool, threads: Threads
    ) -> list[list[Scorer]]:
        whitened = replace(task, features=task.landmark_features)
        solved = Ridge().solve(whitened, sets, strengths, final=final, threads=threads)
        back = task.whitening.T
        return [
            [
                replace(scorer, weights=scorer.weights @ back, expansion=task.landmarks)
                for scorer in scorers
            ]
            for scorers in solved
        ]


class NearestMean:
    """Nearest class mean: no hyper-parameter, so it is safe with few images."""

    strengths = (1.0,)

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = SINGLE_THREAD,
    ) -> list[list[Scorer]]:
        """See Family. |x - m|^2 is linear in x except for |x|^2, which all classes share."""
        del final  # the closed form has full precision
        cells = find_cells(sets)
        sums = np.array(threads.map(task.class_sums, cells.rows))  # (P, C, D)
        counts = np.array(
            [np.bincount(task.targets[rows], minlength=task.classes) for rows in cells.rows]
        )
        scorers = [
            self.scorer(sums[members].sum(axis=0), counts[members].sum(axis=0))
            for members in cells.within
        ]
        return [scorers for _ in strengths]

    @staticmethod
    def scorer(
        sums: NDArray[np.float64], counts: NDArray[np.integer] | NDArray[np.float64]
    ) -> Scorer:
        """Return the scorer of sums (C, D) of features and numbers (C,) of rows by class."""
        means = sums / np.maximum(counts, 1)[:, None]
        bias = -np.square(means).sum(axis=1) / 2
        absent = counts == 0
        if absent.any() and not absent.all():  # below the average for any x
            means[absent] = means[~absent].mean(axis=0)
            bias[absent] = bias[~absent].min() - 1
        return make_scorer(means, bias)


FAMILIES: dict[HeadKind, Family] = {
    "nearest_mean": NearestMean(),
    "ridge": Ridge(),
    "logistic": Logistic(),
    "kernel": KernelRidge(),
    "fourier": RandomFourier(),
}
"""Families by the cost of serving, lowest first."""


def make_scorer(weights: FloatArray, bias: FloatArray, expansion: Kernel | None = None) -> Scorer:
    """Return a scorer in single precision; see Scorer."""
    return Scorer(
        weights=weights.astype(np.float32), bias=bias.astype(np.float32), expansion=expansion
    )


def _by_strength(solved: list[list[Scorer]]) -> list[list[Scorer]]:
    """Transpose scorers from sets by strengths to strengths by sets."""
    return [list(scorers) for scorers in zip(*solved, strict=True)]


def _split(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split rows into at most four parts, for parallel work."""
    return np.array_split(rows, min(4, max(1, len(rows) // 4096)))


def _logistic_scorers(
    task: Task, sets: Sets, strengths: Sequence[float], final: bool
) -> list[list[Scorer]]:
    weights = np.zeros(sets.shape)
    for row, members in zip(weights, sets, strict=True):
        row[members] = balanced_weights(task.targets[members], task.classes)
    solution = logistic.solve(
        task.features,
        task.targets,
        task.classes,
        sample_weights=np.tile(weights, (len(strengths), 1)),
        strengths=np.repeat(strengths, len(sets)),
        tolerance=FINAL_TOLERANCE if final else GRID_TOLERANCE,
        dtype=np.float32,
    )
    scorers = [make_scorer(*solved) for solved in zip(solution.weights, solution.bias, strict=True)]
    return [scorers[at : at + len(sets)] for at in range(0, len(scorers), len(sets))]
