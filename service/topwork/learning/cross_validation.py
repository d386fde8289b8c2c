"""Cross-validation of heads on the same folds, with paired comparisons image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS
from topwork.bundle.features import Normaliser
from topwork.bundle.head import Scorer, softmax
from topwork.bundle.recipe import HeadKind
from topwork.learning.calibration import find_temperature, log_losses
from topwork.learning.families import FAMILIES, Family
from topwork.learning.parallel import SINGLE_THREAD, Threads
from topwork.learning.task import Task, balanced_weights, take_turns

_BLOCK_ROWS = 4096
"""Rows per block; raising it uses more memory."""

ROUNDING = 1e-6
"""Relative difference of losses that is rounding of float32 numbers, and differs by processor."""


# Not slotted: cached properties need __dict__.
@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """N exemplars of C classes with their folds; fold -1 is always trained on, never evaluated."""

    embeddings: NDArray[np.float32]
    """(N, D)"""
    every_target: NDArray[np.int64]
    """(N,), classes of all rows, evaluated or not."""
    classes: int
    folds: NDArray[np.int64]
    """(N,)"""
    families: Mapping[HeadKind, Family] = field(default_factory=lambda: FAMILIES)
    """Families that solve the training sets."""

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Return the indices of the evaluated rows, (J,)."""
        return np.flatnonzero(self.folds >= 0)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Return the classes of the evaluated rows, (J,)."""
        return self.every_target[self.rows]

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Return the weights of the evaluated rows, (J,), balanced by class.

        A row is evaluated but has weight 0 if no other fold has its class.
        """
        counts = np.bincount(self.every_target, minlength=self.classes)
        group = self.targets * FOLDS + self.folds[self.rows]
        has_other_fold = np.bincount(group)[group] < counts[self.targets]
        return np.asarray(balanced_weights(self.targets, self.classes) * has_other_fold)

    @cached_property
    def judged_folds(self) -> NDArray[np.int64]:
        """Return the folds with evaluated rows, (F,), in order."""
        return np.unique(self.folds[self.rows])

    @cached_property
    def sets(self) -> NDArray[np.bool_]:
        """Return the training sets, (F, N): all rows except those of one fold."""
        return np.asarray(self.folds != self.judged_folds[:, None])

    def sample(self, rows: int) -> CrossValidation:
        """Return the cross-validation of a sample of ``rows`` rows, balanced across classes.

        The sample has the first exemplars of each class, in the order of their digests. If it has
        no row that can be evaluated, which is possible after fine-tuning, all rows are used.
        """
        sampled = take_turns(self.every_target, rows)
        if len(sampled) == len(self.folds) or (self.folds[sampled] < 0).all():
            return self
        return CrossValidation(
            embeddings=self.embeddings[sampled],
            every_target=self.every_target[sampled],
            classes=self.classes,
            folds=self.folds[sampled],
        )

    def first_folds(self, rows: int) -> CrossValidation:
        """Return the cross-validation of the first folds that together have ``rows`` rows."""
        enough = np.cumsum(np.bincount(self.folds[self.rows])) >= rows
        last = int(enough.argmax()) if enough.any() else FOLDS
        return replace(self, folds=np.where(self.folds <= last, self.folds, -1))

    def remaining_folds(self, race: CrossValidation) -> CrossValidation:
        """Return the cross-validation of the folds that ``race``, of first folds, lacks."""
        return replace(self, folds=np.where(race.folds < 0, self.folds, -1))

    def task(self, normaliser: Normaliser, threads: Threads = SINGLE_THREAD) -> Task:
        """Return the learning task of the normalised exemplars."""
        features = np.empty_like(self.embeddings)

        def fill(start: int) -> None:
            block = slice(start, start + _BLOCK_ROWS)
            features[block] = normaliser(self.embeddings[block])

        threads.map(fill, range(0, len(features), _BLOCK_ROWS))
        return Task(features=features, targets=self.every_target, classes=self.classes)

    def trials(
        self,
        task: Task,
        normaliser: Normaliser,
        kind: HeadKind,
        strengths: Sequence[float],
        threads: Threads = SINGLE_THREAD,
    ) -> list[Trial]:
        """Return a trial per strength: each row is evaluated by a head trained without its fold."""
        scores = self.scores(task, kind, strengths, threads)
        return threads.map(
            lambda at: self.trial(kind, normaliser, strengths[at], scores[at]),
            range(len(strengths)),
        )

    def complete(self, trial: Trial, race: CrossValidation, task: Task, threads: Threads) -> Trial:
        """Return a trial of ``race``, the first folds, completed with the remaining folds."""
        rest = self.remaining_folds(race)
        (others,) = rest.scores(task, trial.kind, (trial.strength,), threads)
        scores = np.empty((len(self.rows), self.classes), dtype=np.float32)
        scores[np.searchsorted(self.rows, race.rows)] = trial.scores
        scores[np.searchsorted(self.rows, rest.rows)] = others
        return self.trial(trial.kind, trial.normaliser, trial.strength, scores)

    def scores(
        self, task: Task, kind: HeadKind, strengths: Sequence[float], threads: Threads
    ) -> list[NDArray[np.float32]]:
        """Return the scores (J, C) at each strength."""
        solved = self.families[kind].solve(task, self.sets, strengths, final=False, threads=threads)
        task.expanded(solved[0][0].expansion)  # once, not on each thread

        def score(scorers: list[Scorer]) -> NDArray[np.float32]:
            scores = np.empty((len(self.rows), task.classes), dtype=np.float32)
            for fold, scorer in zip(self.judged_folds, scorers, strict=True):
                positions = np.flatnonzero(self.folds[self.rows] == fold)
                scores[positions] = task.scores(scorer, self.rows[positions])
            return scores

        return threads.map(score, solved)

    def trial(
        self,
        kind: HeadKind,
        normaliser: Normaliser,
        strength: float,
        scores: NDArray[np.float32],
    ) -> Trial:
        """Return the trial with these scores (J, C) and the temperature that fits them best."""
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
        """Return the share of evaluated rows whose highest score is of their class."""
        return float((trial.scores.argmax(axis=1) == self.targets).mean())

    def best(self, groups: Iterable[Sequence[Trial]]) -> Trial:
        """Return the trial of least loss, or of the first group that is as good.

        As good: the paired difference is within its standard error (Breiman et al., 1984).
        """
        return self.contenders(groups, errors=1.0)[0]

    def contenders(
        self, groups: Iterable[Sequence[Trial]], *, errors: float, slack: float = 0.0
    ) -> list[Trial]:
        """Return the best trial of each group that is not clearly worse than the best of all.

        Clearly worse: by more than ``errors`` standard errors of the paired difference, and by more
        than ``slack`` (at least ROUNDING) times the least loss.
        """
        leaders = [min(group, key=self.loss) for group in groups]
        least = min(leaders, key=self.loss)

        def contends(trial: Trial) -> bool:
            differences = self.weights * (trial.losses - least.losses)
            error = differences.std() / np.sqrt(len(differences))
            margin = max(slack, ROUNDING) * self.loss(least)
            return bool(differences.mean() <= max(errors * error, margin))

        return [trial for trial in leaders if contends(trial)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Cross-validated head."""

    kind: HeadKind
    normaliser: Normaliser
    strength: float
    scores: NDArray[np.float32]
    """(J, C), scores of each evaluated row by a head trained without its fold."""
    temperature: float
    losses: NDArray[np.float32]
    """(J,), log losses at the temperature."""

    def probabilities(self) -> NDArray[np.float32]:
        """Return the calibrated probabilities (J, C)."""
        return softmax(self.scores / np.float32(self.temperature))
