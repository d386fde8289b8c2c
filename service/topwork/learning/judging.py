"""Paired comparison of heads by cross-validation on the same folds, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS
from topwork.bundle.features import Normaliser
from topwork.bundle.head import Scorer, softmax
from topwork.bundle.recipe import HeadKind
from topwork.learning.calibration import find_temperature, log_losses
from topwork.learning.families import FAMILIES
from topwork.learning.sharing import ALONE, Threads
from topwork.learning.task import Task, balanced_weights, take_turns

_ROWS = 4096
"""Rows that are normalised at once."""


# Not slotted: cached properties need the dictionary.
@dataclass(frozen=True, kw_only=True)
class Judge:
    """N exemplars of C classes and their folds: -1 teaches always and is never judged."""

    embeddings: NDArray[np.float32]
    """(N, D)"""
    every_target: NDArray[np.int64]
    """(N,), all classes, judged or not."""
    classes: int
    folds: NDArray[np.int64]
    """(N,)"""

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Return which rows are judged, (J,)."""
        return np.flatnonzero(self.folds >= 0)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Return the classes of the judged rows, (J,)."""
        return self.every_target[self.rows]

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Return what each judged row counts, (J,): all classes alike.

        A row whose class no other fold has is judged, but teaches nothing about certainty.
        """
        counts = np.bincount(self.every_target, minlength=self.classes)
        group = self.targets * FOLDS + self.folds[self.rows]
        taught = np.bincount(group)[group] < counts[self.targets]
        return np.asarray(balanced_weights(self.targets, self.classes) * taught)

    @cached_property
    def judged_folds(self) -> NDArray[np.int64]:
        """Return the folds that have judged rows, (F,), in order."""
        return np.unique(self.folds[self.rows])

    @cached_property
    def sets(self) -> NDArray[np.bool_]:
        """Return which rows teach, (F, N): all but those of one fold, fold by fold."""
        return np.asarray(self.folds != self.judged_folds[:, None])

    def sample(self, rows: int) -> Judge:
        """Return a judge of so many rows only, of all if there are no more.

        Classes take turns, in the order of the exemplars: of their digests. If the sample has no
        row that may be judged, as after fine-tuning it may be, all rows are taken.
        """
        kept = take_turns(self.every_target, rows)
        if len(kept) == len(self.folds) or (self.folds[kept] < 0).all():
            return self
        return Judge(
            embeddings=self.embeddings[kept],
            every_target=self.every_target[kept],
            classes=self.classes,
            folds=self.folds[kept],
        )

    def shortened(self, rows: int) -> Judge:
        """Return a judge of the first folds only, of as many as have ``rows`` rows together."""
        enough = np.cumsum(np.bincount(self.folds[self.rows])) >= rows
        last = int(enough.argmax()) if enough.any() else FOLDS
        return replace(self, folds=np.where(self.folds <= last, self.folds, -1))

    def remaining(self, short: Judge) -> Judge:
        """Return a judge of the folds that ``short``, which is shortened, does not judge."""
        return replace(self, folds=np.where(short.folds < 0, self.folds, -1))

    def task(self, normaliser: Normaliser, threads: Threads = ALONE) -> Task:
        """Return what is to be learnt of the exemplars."""
        features = np.empty_like(self.embeddings)

        def fill(start: int) -> None:
            block = slice(start, start + _ROWS)
            features[block] = normaliser(self.embeddings[block])

        threads.map(fill, range(0, len(features), _ROWS))
        return Task(features=features, targets=self.every_target, classes=self.classes)

    def trials(
        self,
        task: Task,
        normaliser: Normaliser,
        kind: HeadKind,
        strengths: Sequence[float],
        threads: Threads = ALONE,
    ) -> list[Trial]:
        """Return a trial a strength: each judged row by a head that saw none of its fold."""
        scores = self.scores(task, kind, strengths, threads)
        return threads.map(
            lambda at: self._trial(kind, normaliser, strengths[at], scores[at]),
            range(len(strengths)),
        )

    def completed(self, trial: Trial, short: Judge, task: Task, threads: Threads) -> Trial:
        """Return ``short``'s trial with the rows judged, too, that ``short`` did not judge."""
        rest = self.remaining(short)
        (others,) = rest.scores(task, trial.kind, (trial.strength,), threads)
        scores = np.empty((len(self.rows), self.classes), dtype=np.float32)
        scores[np.searchsorted(self.rows, short.rows)] = trial.scores
        scores[np.searchsorted(self.rows, rest.rows)] = others
        return self._trial(trial.kind, trial.normaliser, trial.strength, scores)

    def scores(
        self, task: Task, kind: HeadKind, strengths: Sequence[float], threads: Threads
    ) -> list[NDArray[np.float32]]:
        """Return the scores (J, C) at each strength."""
        solved = FAMILIES[kind].solve(task, self.sets, strengths, final=False, threads=threads)
        task.expanded(solved[0][0].expansion)  # once, not on each thread

        def score(scorers: list[Scorer]) -> NDArray[np.float32]:
            scores = np.empty((len(self.rows), task.classes), dtype=np.float32)
            for fold, scorer in zip(self.judged_folds, scorers, strict=True):
                mine = np.flatnonzero(self.folds[self.rows] == fold)
                scores[mine] = task.scores(scorer, self.rows[mine])
            return scores

        return threads.map(score, solved)

    def _trial(
        self,
        kind: HeadKind,
        normaliser: Normaliser,
        strength: float,
        scores: NDArray[np.float32],
    ) -> Trial:
        temperature = find_temperature(scores, self.targets, self.weights)
        return Trial(
            kind=kind,
            normaliser=normaliser,
            strength=strength,
            scores=scores,
            temperature=temperature,
            losses=log_losses(scores, self.targets, temperature),
        )

    def loss(self, trial: Trial) -> float:
        """Return the weighted mean log loss of a trial."""
        return float(self.weights @ trial.losses / max(self.weights.sum(), 1e-12))

    def accuracy(self, trial: Trial) -> float:
        """Return the share of judged rows whose highest score is right."""
        return float((trial.scores.argmax(axis=1) == self.targets).mean())

    def best(self, groups: Iterable[Sequence[Trial]]) -> Trial:
        """Return the trial of least loss, but one of an earlier group if that is as good.

        As good: the paired difference is within its standard error (Breiman et al., 1984).
        """
        return self.contenders(groups, errors=1.0)[0]

    def contenders(
        self, groups: Iterable[Sequence[Trial]], *, errors: float, slack: float = 0.0
    ) -> list[Trial]:
        """Return the best trial of each group, but of those that another's best is better than.

        Better: by more than so many standard ``errors`` of the paired difference, and by more than
        ``slack``, a share of the least loss.
        """
        leaders = [min(group, key=self.loss) for group in groups]
        least = min(leaders, key=self.loss)

        def contends(trial: Trial) -> bool:
            differences = self.weights * (trial.losses - least.losses)
            error = differences.std() / np.sqrt(len(differences))
            return bool(differences.mean() <= max(errors * error, slack * self.loss(least)))

        return [one for one in leaders if contends(one)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A head that was cross-validated."""

    kind: HeadKind
    normaliser: Normaliser
    strength: float
    scores: NDArray[np.float32]
    """(J, C), each judged row's by a head that saw no row of its fold."""
    temperature: float
    losses: NDArray[np.float32]
    """(J,), log losses at that temperature."""

    def probabilities(self) -> NDArray[np.float32]:
        """Return the calibrated probabilities (J, C)."""
        return softmax(self.scores / np.float32(self.temperature))
