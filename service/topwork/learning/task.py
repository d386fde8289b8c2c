"""Learning task: features with their classes, kernels, and nearest points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.features import TINY
from topwork.bundle.head import Fourier, Kernel, Scorer, Support
from topwork.learning.parallel import SINGLE_THREAD, Threads

DIRECTIONS = 256
"""Number of principal components for distances and kernels.

On 2,000 photos of five kinds of flowers a kernel head on 256 of 1,280 components was as good as on
all (accuracy 0.936 and 0.934), at a fifth of the size; on 128 it was 0.933. Half as many as images,
if there are fewer than 512, would halve the memory of small heads; it was as accurate, but the log
loss was 0.6 % greater with 100, 48 and 20 photos per kind.
"""

SUPPORT_ROWS = 4_000
"""Largest number of points of a support: 2 MB in a head; the solve takes cubic time."""

EXACT_KERNEL_ROWS = 3_000
"""Raising it gives a kernel all rows of more tasks."""

LANDMARKS = 1_000
"""Number of points of a kernel for large sets (Williams and Seeger, NeurIPS 2000).

On 2,000 photos of flowers, at the better of the two strengths, the accuracy was 0.931 with 1,000
landmarks and 0.9345 with all rows.
"""

_JITTER = 1e-4
"""Raising it ignores differences between similar landmarks."""

FOURIER_FEATURES = 2_048
"""Number of random Fourier features; raising it approximates the kernel better and costs more."""

GAMMA = 1.0
"""Inverse width of kernels, for features of mean squared length 1; 0.5 and 2 were no better."""

MAX_GROUPS = 10
"""Largest number of groups of classes that are left out in turn; raising it costs more solves."""

_BLOCK_DISTANCES = 2**21
"""Approximate number of distances in memory in ``nearest``."""

_BLOCK_ROWS = 4096
"""Rows per block; raising it uses more memory."""

_MIN_DIAGONAL = 1e-5
"""Smallest diagonal value of a Cholesky factor that is precise enough; else QR is used."""


# Not slotted: cached properties need __dict__.
@dataclass(frozen=True, kw_only=True)
class Task:
    """Features and classes of N rows of C classes."""

    features: NDArray[np.float32]
    """(N, D)"""
    targets: NDArray[np.int64]
    """(N,)"""
    classes: int

    @cached_property
    def support_rows(self) -> NDArray[np.int64]:
        """Return the rows of the support's points: at most SUPPORT_ROWS, in order."""
        return take_turns(self.targets, SUPPORT_ROWS)

    @cached_property
    def support(self) -> Support:
        """Return the support of all rows. It ignores classes, so any set of rows can use it.

        Measured on 2,000 photos of flowers: with separate components for each set, accuracy changed
        by 0.0006 and the AUROC of the unknown from 0.865 to 0.861, at twice the cost.
        """
        return make_support(self.features[self.support_rows])

    @cached_property
    def distances(self) -> NDArray[np.float32]:
        """Return squared distances (N, M) of rows and points; for at most SUPPORT_ROWS rows."""
        return self._by_blocks(self.support.distances, len(self.support.points))

    @cached_property
    def kernel(self) -> Kernel:
        """Return the kernel expansion: similarities to all rows of a small task."""
        return Kernel(support=self.support, gamma=GAMMA)

    @cached_property
    def similarities(self) -> NDArray[np.float32]:
        """Return the pairwise similarities (M, M) of the support's points."""
        points = self.support.points
        lengths = np.square(points).sum(axis=1)
        result = points @ points.T * np.float32(-2)
        result += lengths
        result += lengths[:, None]
        return _similarities(np.maximum(result, 0, out=result))

    @cached_property
    def landmarks(self) -> Kernel:
        """Return the kernel expansion of a large task: similarities to LANDMARKS of its rows.

        They are the same number of rows of each class, if there are so many.
        """
        rows = np.searchsorted(self.support_rows, take_turns(self.targets, LANDMARKS))
        return Kernel(support=self.support[rows], gamma=GAMMA)

    @cached_property
    def whitening(self) -> NDArray[np.float32]:
        """Return the map (M, M) of similarities to landmarks to features whose products are them.

        So ridge regression on these features is kernel ridge regression.
        """
        points = self.landmarks.support.points.astype(np.float64)
        lengths = np.square(points).sum(axis=1)
        distances = lengths + lengths[:, None] - 2 * points @ points.T
        similarities = np.exp(-GAMMA * np.maximum(distances, 0))
        np.fill_diagonal(similarities, 1 + _JITTER)
        return np.linalg.inv(np.linalg.cholesky(similarities)).T.astype(np.float32)

    @cached_property
    def landmark_features(self) -> NDArray[np.float32]:
        """Return the whitened similarities (N, M) to the landmarks."""
        return self._landmark_similarities @ self.whitening

    @cached_property
    def fourier(self) -> Fourier:
        """Return the random Fourier expansion, the same in all tasks of the same width."""
        rng = np.random.default_rng(0)
        directions = rng.standard_normal((self.features.shape[1], FOURIER_FEATURES)) * np.sqrt(
            2 * GAMMA
        )
        return Fourier(
            projection=_round_to_float16(directions.astype(np.float32)),
            phase=rng.uniform(0, 2 * np.pi, FOURIER_FEATURES).astype(np.float32),
        )

    def expanded(self, expansion: Kernel | Fourier | None) -> NDArray[np.float32]:
        """Return the features (N, M) expanded by an expansion of this task, if any."""
        if expansion is None:
            return self.features
        if isinstance(expansion, Fourier):
            return self._fourier_features
        return self._landmark_similarities if self.is_large else self._kernel_features

    @property
    def is_large(self) -> bool:
        """True if a kernel has landmarks instead of all rows, whose solve takes cubic time."""
        return len(self.targets) > EXACT_KERNEL_ROWS

    @cached_property
    def _kernel_features(self) -> NDArray[np.float32]:
        return _similarities(self.distances.copy())

    @cached_property
    def _landmark_similarities(self) -> NDArray[np.float32]:
        return self._by_blocks(self.landmarks, len(self.whitening))

    @cached_property
    def _fourier_features(self) -> NDArray[np.float32]:
        return self._by_blocks(self.fourier, FOURIER_FEATURES)

    def _by_blocks(
        self, function: Callable[[NDArray[np.float32]], NDArray[np.float32]], width: int
    ) -> NDArray[np.float32]:
        result = np.empty((len(self.features), width), dtype=np.float32)
        for start in range(0, len(result), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            result[block] = function(self.features[block])
        return result

    def scores(self, scorer: Scorer, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores (n, C) of ``rows``."""
        expanded = self.expanded(scorer.expansion)
        result = np.empty((len(rows), self.classes), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            result[block] = scorer.linear(expanded[rows[block]])
        return result

    def class_sums(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the sums (C, D) of the features of ``rows`` by class."""
        rows = rows[np.argsort(self.targets[rows], kind="stable")]
        sums = np.zeros((self.classes, self.features.shape[1]))
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            present, starts = np.unique(self.targets[block], return_index=True)
            sums[present] += np.add.reduceat(self.features[block], starts, axis=0, dtype=np.float64)
        return sums

    def nearest(
        self, cells: NDArray[np.int64], count: int, threads: Threads = SINGLE_THREAD
    ) -> NDArray[np.float32]:
        """Return squared distances (N, count) from each row to the nearest point of each cell.

        ``cells`` (N,) has the cell of each row, 0 to count - 1. The distance to a cell without
        points is infinite; the nearest point of a row may be the row itself.
        """
        order = np.argsort(cells[self.support_rows], kind="stable")
        present, starts = np.unique(cells[self.support_rows[order]], return_index=True)
        result = np.full((len(self.features), count), np.inf, dtype=np.float32)
        support = self.support[order]
        distances_of_task = self.distances if len(result) <= SUPPORT_ROWS else None
        # An additional direction adds |p|^2 to the products; |x|^2 does not affect the order.
        ends = np.column_stack([support.points, np.square(support.points).sum(axis=1)]).T.copy()

        def fill(start: int) -> None:
            block = slice(start, start + size)
            if distances_of_task is not None:
                distances = distances_of_task[block].take(order, axis=1)
                result[block, present] = np.minimum.reduceat(distances, starts, axis=1)
                return
            centred = self.features[block] - support.centre
            seen = np.ones((len(centred), len(ends)), dtype=np.float32)
            np.matmul(centred, support.projection * np.float32(-2), out=seen[:, :-1])
            least = np.minimum.reduceat(seen @ ends, starts, axis=1)
            least += np.square(centred).sum(axis=1)[:, None]
            result[block, present] = np.maximum(least, 0)

        size = max(1, _BLOCK_DISTANCES // len(order))
        threads.map(fill, range(0, len(result), size))
        return result


def take_turns(targets: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most ``count`` row indices, in order, balanced across classes (round robin).

    The first rows of each class are used, so a sample of exemplars is determined by image digests.
    """
    if len(targets) <= count:
        return np.arange(len(targets))
    order = np.argsort(targets, kind="stable")
    sorted_targets = targets[order]
    turn = np.arange(len(order)) - np.searchsorted(sorted_targets, sorted_targets)
    return np.sort(order[np.lexsort((order, turn))[:count]])


def class_groups(targets: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the group of classes (N,) that each row of ``targets`` is left out with."""
    return targets % min(classes, MAX_GROUPS)


def balanced_weights(targets: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return weights (N,) of mean 1 with the same sum for every class that has rows."""
    counts = np.bincount(targets, minlength=classes)
    return np.asarray(len(targets) / (np.count_nonzero(counts) * counts[targets]))


def make_support(features: NDArray[np.float32]) -> Support:
    """Return a support whose points are the features (N, D) in their principal components.

    Components are found by subspace iteration (Halko et al., SIAM Review 53:217, 2011) from fixed
    random sums of the rows, so that they do not depend on the order of the columns. Values are
    rounded to 16 bits, as they are stored, before anything is learnt from them.
    """
    width = features.shape[1]
    directions = min(DIRECTIONS, width, len(features))
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = features - centre
    sums = np.random.default_rng(0).standard_normal((len(features), min(directions + 16, width)))
    basis = _orthogonal(centred.T @ sums.astype(np.float32))
    for _ in range(2):
        basis = _orthogonal(centred.T @ (centred @ basis))
    seen = centred @ basis
    turn = np.linalg.eigh(seen.T @ seen)[1][:, ::-1]  # by descending eigenvalue
    projection = _round_to_float16(basis @ turn[:, :directions])
    return Support(
        centre=centre, projection=projection, points=_round_to_float16(centred @ projection)
    )


def _orthogonal(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an orthonormal basis of the span of columns (D, Q), by Cholesky QR if possible.

    Cholesky QR takes half as long as Householder QR; double precision compensates for the squared
    condition number.
    """
    exact = columns / np.maximum(np.linalg.norm(columns, axis=0), TINY).astype(np.float64)
    try:
        factor = np.linalg.cholesky(exact.T @ exact)
    except np.linalg.LinAlgError:
        return np.linalg.qr(columns)[0]
    if factor.diagonal().min() < _MIN_DIAGONAL:
        return np.linalg.qr(columns)[0]
    return np.asarray(exact @ np.linalg.inv(factor).T, dtype=np.float32)


def _similarities(distances: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the similarities of squared distances, which they overwrite."""
    distances *= np.float32(-GAMMA)
    return np.asarray(np.exp(distances, out=distances))


def _round_to_float16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.astype(np.float16).astype(np.float32)
