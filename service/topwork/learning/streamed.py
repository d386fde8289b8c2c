"""Out-of-core learning: heads of sets that are too large for memory, from sums over blocks of rows.

Linear heads in closed form need only sums over rows: Gram matrices and class sums. These are kept
for each fold and each of a few groups of classes, so that all training sets of the cross-validation
and of the detection of unknown images are solved exactly, after one pass over all rows. A sample of
the rows, balanced by class, is evaluated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.embedding_rows import EmbeddingRows
from topwork.bundle.features import Normaliser, make_of_moments
from topwork.bundle.head import Scorer, softmax
from topwork.bundle.recipe import HeadKind, Normalisation
from topwork.learning import ridge
from topwork.learning.cross_validation import CrossValidation, Trial
from topwork.learning.families import NearestMean, Ridge, Sets, make_scorer
from topwork.learning.gate import LEAST_SAMPLE
from topwork.learning.parallel import SINGLE_THREAD, Threads
from topwork.learning.task import Task, balanced_weights, class_groups, take_turns

KINDS: tuple[HeadKind, ...] = ("ridge", "nearest_mean")
"""Kinds of heads that sums over rows suffice for, in the order of preference."""

BLOCK_ROWS = 16_384
"""Rows whose features are in memory at once, for each thread; raising it uses more memory."""

JUDGED_ROWS = 200_000
"""Largest number of rows of a large set that are evaluated; raising it costs time."""

JUDGED_NUMBERS = 2**26
"""Largest number of their probabilities: 0.25 GiB, and three times as much while publishing."""

SAMPLE_ROWS_PER_LABEL = 20
"""Smallest number of rows per label of the sample on which a head is chosen and calibrated."""

SAMPLE_ROWS = 20_000
"""Smallest number of rows of that sample; raising it costs time and memory."""

MAX_VALUE = 1e15
"""Largest magnitude of an embedding's values; larger squares may overflow float32."""

_PART_ROWS = 1_024
"""Rows that are read and normalised at once, in the processor's cache."""


class BrokenEmbedding(Exception):
    """An embedding is not finite, or its values are beyond MAX_VALUE."""


def is_valid(embeddings: NDArray[np.float32]) -> bool:
    """Return True if all values are finite and within MAX_VALUE."""
    return bool(embeddings.max() <= MAX_VALUE and embeddings.min() >= -MAX_VALUE)  # False for NaN


# Not slotted: cached properties need __dict__.
@dataclass(frozen=True, kw_only=True)
class LargeSet:
    """All N rows of C classes, with the folds of the cross-validation; -1: always trained on."""

    embeddings: EmbeddingRows
    """(N, D)"""
    targets: NDArray[np.int64]
    """(N,)"""
    classes: int
    folds: NDArray[np.int64]
    """(N,)"""

    @cached_property
    def judged(self) -> NDArray[np.int64]:
        """Return the evaluated rows, in order: the first of each class that can be evaluated.

        They are balanced across classes.
        """
        unseen = np.flatnonzero(self.folds >= 0)
        rows = max(LEAST_SAMPLE, min(JUDGED_ROWS, JUDGED_NUMBERS // self.classes))
        return unseen[take_turns(self.targets[unseen], rows)]

    @cached_property
    def sample(self) -> NDArray[np.int64]:
        """Return the rows for the choice of a head and its calibration: a part of ``judged``."""
        rows = max(SAMPLE_ROWS, SAMPLE_ROWS_PER_LABEL * self.classes)
        return self.judged[take_turns(self.targets[self.judged], rows)]

    def normaliser(self, kind: Normalisation, threads: Threads) -> Normaliser:
        """Fit a normalisation to all rows."""
        count, width = self.embeddings.shape
        pivot = self.embeddings[self.sample].mean(axis=0, dtype=np.float64)

        def measure(start: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
            x = self.embeddings[slice(start, start + BLOCK_ROWS)]
            square = float(np.square(x, dtype=np.float64).sum())
            x = x - pivot  # the variance of values near 0 is precise
            return x.sum(axis=0), np.square(x).sum(axis=0), square

        sums, squares, square = np.zeros(width), np.zeros(width), 0.0
        if kind in {"none", "standardise"}:  # the others have no parameters
            for part in threads.map(measure, range(0, count, BLOCK_ROWS)):
                sums, squares, square = sums + part[0], squares + part[1], square + part[2]
        mean = sums / count
        variance = np.maximum(squares / count - np.square(mean), 0)
        return make_of_moments(kind, count, mean + pivot, variance, square / count)

    def probabilities(
        self, validation: CrossValidation, task: Task, best: Trial, threads: Threads
    ) -> NDArray[np.float32]:
        """Return the probabilities (J, C) of the rows of ``judged``, each without its fold.

        ``best`` is a trial of ``validation``, of the sample.
        """
        (scorers,) = validation.families[best.kind].solve(
            task, validation.sets, (best.strength,), final=False, threads=threads
        )
        places = np.searchsorted(validation.judged_folds, self.folds[self.judged])
        found = np.empty((len(self.judged), self.classes), dtype=np.float32)

        def fill(start: int) -> None:
            rows = np.arange(start, min(start + _PART_ROWS, len(found)))
            features = best.normaliser(self.embeddings[self.judged[rows]])
            for fold in np.unique(places[rows]).tolist():
                own = places[rows] == fold
                scores = scorers[fold](features[own]) / np.float32(best.temperature)
                found[rows[own]] = softmax(scores)

        threads.map(fill, range(0, len(found), _PART_ROWS))
        return found

    def note(self) -> str:
        """Return a sentence about the limits of this size, for the report."""
        return (
            f"{len(self.targets):,} images of {self.classes:,} labels: too many to be in memory, "
            f"so only {' and '.join(KINDS).replace('_', ' ')} were tried; they learnt from all "
            f"images. Head, calibration and detection of unknown images were chosen on "
            f"{len(self.sample):,} images and judged on {len(self.judged):,}, balanced by label"
        )

    def families(self, normaliser: Normaliser, threads: Threads) -> Mapping[HeadKind, StreamedHead]:
        """Return the families of heads for tasks of the sample, after one pass over all rows.

        The pass takes N x D x D multiplications, which dominate.
        """
        sums = _sum_rows(self, normaliser, threads)
        cells = _Cells(
            groups=class_groups(self.targets[self.sample], self.classes),
            folds=np.searchsorted(sums.folds, self.folds[self.sample]),
        )
        return {
            "ridge": StreamedRidge(sums=sums, cells=cells),
            "nearest_mean": StreamedNearestMean(sums=sums, cells=cells),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """Group of classes and fold of each row of a sample: indices into the sums."""

    groups: NDArray[np.int64]
    folds: NDArray[np.int64]

    def within(self, members: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return True for the cells (G, F) of all rows that a set of the sample's rows stands for.

        The set must be all rows of some groups and some folds. Groups and folds without a row in
        the sample, which are those that are always trained on, are in it.
        """
        has_group, has_fold = (
            (np.bincount(place[members], minlength=count) > 0)
            | (np.bincount(place, minlength=count) == 0)
            for place, count in zip((self.groups, self.folds), shape, strict=True)
        )
        return np.asarray(has_group[:, None] & has_fold)


@dataclass(frozen=True, kw_only=True)
class RowSums:
    """Sums over all rows of G groups of classes and F folds; features are less the centre."""

    folds: NDArray[np.int64]
    """(F,), the folds with rows, in order."""
    products: NDArray[np.float32]
    """(G, F, D, D), sums of x x' by group and fold, with the classes' weights."""
    features: NDArray[np.float64]
    """(F, C, D), sums of x by fold and class."""
    counts: NDArray[np.int64]
    """(F, C), rows."""
    weights: NDArray[np.float64]
    """(C,), weights of the classes' rows: those of ``balanced_weights``."""
    centre: NDArray[np.float64]
    """(D,)"""

    @cached_property
    def all_products(self) -> NDArray[np.float64]:
        """Return the sum (D, D) of the products of all cells."""
        return np.asarray(self.products.sum(axis=(0, 1), dtype=np.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of groups and of folds."""
        groups, folds = self.products.shape[:2]
        return groups, folds

    def by_class(
        self, within: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the sums (C, D) and numbers (C,) of rows by class, of the cells (G, F)."""
        classes = len(self.weights)
        member = within[class_groups(np.arange(classes), classes)].T  # (F, C)
        sums = np.zeros(self.features.shape[1:])
        for fold, own in zip(self.features, member, strict=True):
            sums[own] += fold[own]
        return sums, np.asarray((member * self.counts).sum(axis=0), dtype=np.float64)

    def gram(self, within: NDArray[np.bool_]) -> ridge.Gram:
        """Return the Gram matrices of the cells (G, F)."""
        products = self.all_products.copy()
        for group, fold in np.argwhere(~within).tolist():
            products -= self.products[group, fold]
        sums, counts = self.by_class(within)
        sums *= self.weights[:, None]
        return ridge.Gram(
            products=products,
            cross_products=sums.T,
            rows=sums.sum(axis=0),
            classes=counts * self.weights,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedHead(ABC):
    """Family of heads that learns a sample's sets from all rows of their cells; see ``_Cells``."""

    sums: RowSums
    cells: _Cells

    @property
    @abstractmethod
    def strengths(self) -> tuple[float, ...]:
        """See Family."""

    @abstractmethod
    def solve_cells(
        self, within: NDArray[np.bool_], strengths: Sequence[float], *, final: bool
    ) -> list[Scorer]:
        """Return a scorer for each strength, learnt from the cells (G, F)."""

    def solve(
        self,
        task: Task,
        sets: Sets,
        strengths: Sequence[float],
        *,
        final: bool,
        threads: Threads = SINGLE_THREAD,
    ) -> list[list[Scorer]]:
        """See Family; ``task`` is of the sample, with the normaliser of the sums."""
        del task
        every = [self.cells.within(members, self.sums.shape) for members in sets]
        _ = self.sums.all_products  # once, not on each thread
        solved = threads.map(lambda within: self.solve_cells(within, strengths, final=final), every)
        return [list(scorers) for scorers in zip(*solved, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedRidge(StreamedHead):
    """Ridge regression as ``families.Ridge``, from sums."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """See Family."""
        return Ridge.strengths

    def solve_cells(
        self, within: NDArray[np.bool_], strengths: Sequence[float], *, final: bool
    ) -> list[Scorer]:
        """See StreamedHead."""
        return [
            make_scorer(weights, bias - weights @ self.sums.centre)
            for weights, bias in ridge.solve(
                self.sums.gram(within), strengths, dtype=np.float64 if final else np.float32
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedNearestMean(StreamedHead):
    """Nearest class mean as ``families.NearestMean``, from sums."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """See Family."""
        return NearestMean.strengths

    def solve_cells(
        self, within: NDArray[np.bool_], strengths: Sequence[float], *, final: bool
    ) -> list[Scorer]:
        """See StreamedHead."""
        del final
        sums, counts = self.sums.by_class(within)
        return [NearestMean.scorer(sums + counts[:, None] * self.sums.centre, counts)] * len(
            strengths
        )


def _sum_rows(large: LargeSet, normaliser: Normaliser, threads: Threads) -> RowSums:
    """Return the sums over all rows: fixed blocks in a fixed order, one group of classes a part."""
    targets, classes = large.targets, large.classes
    folds, places = np.unique(large.folds, return_inverse=True)
    weights = np.zeros(classes)
    weights[targets] = balanced_weights(targets, classes)
    # Any centre gives the same head, but features near 0 lose less in single precision.
    centre = normaliser(large.embeddings[large.sample]).mean(axis=0, dtype=np.float64)
    shift = centre.astype(np.float32)
    order = np.argsort(targets, kind="stable")
    groups = class_groups(targets[order], classes)
    width, count = large.embeddings.shape[1], int(groups.max()) + 1
    products = np.zeros((count, len(folds), width, width), dtype=np.float32)
    features = np.zeros((len(folds), classes, width))

    def add(group: int) -> None:
        rows = order[groups == group]
        buffer = np.empty((min(BLOCK_ROWS, len(rows)), width), dtype=np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            x = buffer[: len(block)]
            block = block[np.argsort(places[block], kind="stable")]
            for first in range(0, len(block), _PART_ROWS):
                part = slice(first, first + _PART_ROWS)
                embeddings = large.embeddings[block[part]]
                if not is_valid(embeddings):
                    raise BrokenEmbedding
                np.subtract(normaliser(embeddings), shift, out=x[part])
            ends = np.searchsorted(places[block], np.arange(len(folds) + 1))
            for fold in range(len(folds)):
                own = slice(*ends[fold : fold + 2].tolist())
                if own.start == own.stop:
                    continue
                present, starts = np.unique(targets[block[own]], return_index=True)
                features[fold, present] += np.add.reduceat(x[own], starts, axis=0)
                x[own] *= np.sqrt(weights[targets[block[own]], None]).astype(np.float32)
                products[group, fold] += x[own].T @ x[own]  # BLAS uses the symmetry

    threads.map(add, range(count))
    counts = np.bincount(places * classes + targets, minlength=len(folds) * classes)
    return RowSums(
        folds=folds,
        products=products,
        features=features,
        counts=counts.reshape(len(folds), classes),
        weights=weights,
        centre=centre,
    )
