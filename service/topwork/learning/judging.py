"""How heads are compared: by cross-validation on the same folds, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.features import Normaliser
from topwork.bundle.head import softmax
from topwork.bundle.recipe import HeadKind
from topwork.learning.calibration import find_temperature, log_losses
from topwork.learning.families import FAMILIES
from topwork.learning.task import Task, balanced_weights


# Not slotted: cached properties need the dictionary.
@dataclass(frozen=True, kw_only=True)
class Judge:
    """The exemplars and their folds: -1 teaches always and is never judged."""

    exemplars: Exemplars
    folds: NDArray[np.int64]
    """(N,)"""

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Return which rows are judged, (J,)."""
        return np.flatnonzero(self.folds >= 0)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Return the classes of the judged rows, (J,)."""
        return self.exemplars.targets[self.rows]

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Return what each judged row counts, (J,): all classes alike.

        A row whose class no other fold has is judged, but teaches nothing about certainty.
        """
        counts = self.exemplars.counts()
        group = self.targets * FOLDS + self.folds[self.rows]
        taught = np.bincount(group)[group] < counts[self.targets]
        return np.asarray(balanced_weights(self.targets, len(counts)) * taught)

    @cached_property
    def sets(self) -> NDArray[np.bool_]:
        """Return which rows teach, (F, N): all but those of one fold, fold by fold."""
        return np.asarray(self.folds != np.arange(self.folds.max() + 1)[:, None])

    def shortened(self, rows: int) -> Judge:
        """Return a judge of the first folds only, of as many as have ``rows`` rows together."""
        enough = np.cumsum(np.bincount(self.folds[self.rows])) >= rows
        last = int(enough.argmax()) if enough.any() else FOLDS
        return replace(self, folds=np.where(self.folds <= last, self.folds, -1))

    def task(self, normaliser: Normaliser) -> Task:
        """Return what is to be learnt of the exemplars."""
        return Task(
            features=normaliser(self.exemplars.embeddings),
            targets=self.exemplars.targets,
            classes=len(self.exemplars.labels),
        )

    def trials(
        self, task: Task, normaliser: Normaliser, kind: HeadKind, strengths: Sequence[float]
    ) -> list[Trial]:
        """Return a trial a strength: each judged row by a head that saw none of its fold."""
        solved = FAMILIES[kind].solve(task, self.sets, strengths, final=False)
        expand = solved[0][0].expansion  # the same in all
        features = task.features[self.rows]
        expanded = features if expand is None else expand(features)
        trials = []
        for strength, scorers in zip(strengths, solved, strict=True):
            scores = np.zeros((len(self.rows), task.classes), dtype=np.float32)
            for fold, scorer in enumerate(scorers):
                mine = self.folds[self.rows] == fold
                scores[mine] = scorer.linear(expanded[mine])
            temperature = find_temperature(scores, self.targets, self.weights)
            trials.append(
                Trial(
                    kind=kind,
                    normaliser=normaliser,
                    task=task,
                    strength=strength,
                    scores=scores,
                    temperature=temperature,
                    losses=log_losses(scores / np.float32(temperature), self.targets),
                )
            )
        return trials

    def loss(self, trial: Trial) -> float:
        """Return the weighted mean log loss of a trial."""
        return float(self.weights @ trial.losses / max(self.weights.sum(), 1e-12))

    def accuracy(self, trial: Trial) -> float:
        """Return the share of judged rows whose highest score is right."""
        return float((trial.scores.argmax(axis=1) == self.targets).mean())

    def best(self, groups: Sequence[Sequence[Trial]]) -> Trial:
        """Return the trial of least loss, but one of an earlier group if that is as good.

        As good: the paired difference is within its standard error (Breiman et al., 1984).
        """
        leaders = [min(group, key=self.loss) for group in groups]
        least = min(leaders, key=self.loss)
        return next(one for one in leaders if self._as_good(one, least))

    def _as_good(self, trial: Trial, least: Trial) -> bool:
        differences = self.weights * (trial.losses - least.losses)
        error = differences.std() / np.sqrt(len(differences))
        return bool(differences.mean() <= error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A head that was cross-validated."""

    kind: HeadKind
    normaliser: Normaliser
    task: Task
    strength: float
    scores: NDArray[np.float32]
    """(J, C), each judged row's by a head that saw no row of its fold."""
    temperature: float
    losses: NDArray[np.float32]
    """(J,), log losses at that temperature."""

    def probabilities(self) -> NDArray[np.float32]:
        """Return the calibrated probabilities (J, C)."""
        return softmax(self.scores / np.float32(self.temperature))
