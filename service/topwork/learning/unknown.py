"""Out-of-distribution detection, calibrated by leave-one-class-out.

An image is as unknown as the more unusual of two signals says: the highest logit, which is low
between the known classes, and the distance to the nearest exemplar, which is large far from them.
Each is in standard deviations of known images that the head was not trained on. The two weights are
not learnt from the left-out classes: which signal finds a class depends on the class, and the next
unknown class is another one. See ``tests/benchmarks/unknown.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import FloatArray
from topwork.bundle.drift import UnknownDistribution
from topwork.bundle.exemplars import FOLDS
from topwork.bundle.head import Unknown
from topwork.bundle.metrics import LeftOutLabel, UnknownMetrics
from topwork.learning import logistic
from topwork.learning.families import Family
from topwork.learning.parallel import SINGLE_THREAD, Threads
from topwork.learning.task import MAX_GROUPS, Task, class_groups

_MAX_DEVIATION = 4.0
"""Standard deviations at which deviations are clipped for the fit of the probability."""

_PRIOR_WEIGHT = 0.1
"""Weight of the prior that a distant image is unknown; all data have weight 1."""

_MIN_SLOPE = 0.1
"""Smallest increase of the log odds per standard deviation; a lower one is chance."""

_PRIOR_IMAGES = 5
"""Raising it moves the mean highest logit of a class towards that of all classes."""

FALSE_REJECTS = 0.05
"""Share of known images above the threshold; raising it detects more unknown images."""


def learn_unknown(
    task: Task,
    family: Family,
    strength: float,
    *,
    labels: tuple[str, ...],
    folds: NDArray[np.int64],
    scores: FloatArray,
    temperature: float,
    threads: Threads = SINGLE_THREAD,
) -> tuple[Unknown, UnknownMetrics] | None:
    """Return the detector of unknown images with its metrics; None if it cannot be evaluated.

    ``scores`` (J, C) are the out-of-fold scores of the task's rows whose fold is not -1; logits
    are scores divided by ``temperature``. Classes are left out in turn: a head is learnt from the
    other classes without one fold. The deviations of the images of this fold (known) and of the
    left-out classes (unknown) give the probability of a deviation, by logistic regression, and the
    metrics. Deviations are relative to known images, so the probability is valid for the head of
    all classes.
    """
    groups = _Groups(task, folds, threads)
    trials = _trials(task, family, strength, groups, threads)
    known = _Signals.of(scores, groups.nearest_of_other_folds()[folds >= 0])
    reachable = np.isfinite(known.nearest)
    if not trials or not reachable.any():
        return None
    known, known_folds = known[reachable], folds[folds >= 0][reachable]
    usual = _Usual.of(known, task.classes)
    slope, bias = _fit_probability(trials)

    def probabilities(deviations: FloatArray) -> FloatArray:
        return np.asarray(1 / (1 + np.exp(-np.clip(slope * deviations + bias, -30, 30))))

    probabilities_of_known = probabilities(usual.deviations_of_known(known))
    threshold = _threshold(probabilities_of_known)
    per_label = sorted(
        ((target, trial) for trial in trials for target in trial.left_out), key=itemgetter(0)
    )
    aurocs = [auroc(trial.known, trial.left_out[target]) for target, trial in per_label]
    detected = [
        float(is_unknown(probabilities(trial.left_out[target]), threshold).mean())
        for target, trial in per_label
    ]
    logit_weight, distance_weight = slope / usual.spread
    return (
        Unknown(
            support=task.support,
            logit_weight=float(-logit_weight * temperature),
            logit_bias=(bias + logit_weight * usual.highest).astype(np.float32),
            distance_weight=float(distance_weight),
            distance_bias=float(bias - distance_weight * usual.nearest),
            threshold=threshold,
            distribution=UnknownDistribution.of(probabilities_of_known),
        ),
        UnknownMetrics(
            auroc=float(np.mean(aurocs)),
            false_reject_rate=_false_rejects(probabilities_of_known, known_folds),
            detection_rate=float(np.mean(detected)),
            per_label=tuple(
                LeftOutLabel(label=labels[target], auroc=value)
                for (target, _), value in zip(per_label, aurocs, strict=True)
            ),
        ),
    )


def is_unknown(probabilities: FloatArray, threshold: float) -> NDArray[np.bool_]:
    """Return True for unknown probabilities (N,) that serving reports as unknown."""
    return probabilities >= threshold


def auroc(known: FloatArray, unknown: FloatArray) -> float:
    """Return the AUROC: the probability that an unknown value exceeds a known one; ties count half.

    Computed as the Mann-Whitney statistic.
    """
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, side="left")
    equal = np.searchsorted(ordered, unknown, side="right") - below
    return float((below + equal / 2).mean() / len(known))


class _Groups:
    """Groups of classes that are left out in turn, and distances to the nearest rows."""

    def __init__(self, task: Task, folds: NDArray[np.int64], threads: Threads) -> None:
        self.folds = folds
        self.count = min(task.classes, MAX_GROUPS)
        self.of_row = class_groups(task.targets, task.classes)
        columns = FOLDS + 1  # the first column is for rows that are never evaluated
        cells = self.of_row * columns + folds + 1
        nearest = task.nearest(cells, self.count * columns, threads)
        self._nearest = nearest.reshape(-1, self.count, columns)

    def nearest_of_other_folds(self) -> FloatArray:
        """Return the squared distances (N,) from rows to the nearest row of another fold."""
        by_fold = self._nearest.min(axis=1)
        by_fold[np.arange(len(by_fold)), self.folds + 1] = np.inf
        return np.asarray(by_fold.min(axis=1))

    def nearest_without(self, group: int, fold: int) -> FloatArray:
        """Return the squared distances (N,) to the nearest row of another group and fold."""
        others = np.delete(np.delete(self._nearest, group, axis=1), fold + 1, axis=2)
        return np.asarray(others.min(axis=(1, 2), initial=np.inf))


@dataclass(frozen=True, slots=True)
class _Signals:
    """Signals of n images."""

    highest: NDArray[np.float64]
    """(n,), highest scores."""
    predicted: NDArray[np.int64]
    """(n,), classes of the highest scores."""
    nearest: NDArray[np.float64]
    """(n,), squared distances to the nearest known row."""

    @classmethod
    def of(cls, scores: FloatArray, nearest: FloatArray) -> _Signals:
        """Return the signals of scores (n, C) and squared distances (n,)."""
        return cls(
            scores.max(axis=1).astype(np.float64),
            scores.argmax(axis=1),
            nearest.astype(np.float64),
        )

    def __getitem__(self, rows: NDArray[np.bool_]) -> _Signals:
        """Return the signals of the selected images."""
        return _Signals(self.highest[rows], self.predicted[rows], self.nearest[rows])


@dataclass(frozen=True, slots=True)
class _Usual:
    """Usual signals: those of known images that the head was not trained on."""

    highest: NDArray[np.float64]
    """(C,), mean highest score of the images that are predicted to be of a class."""
    weights: NDArray[np.int64]
    """(C,), number of these images and of the prior's."""
    nearest: float
    """Mean squared distance."""
    spread: NDArray[np.float64]
    """(2,), standard deviations of the highest score and of the squared distance."""

    @classmethod
    def of(cls, known: _Signals, classes: int) -> _Usual:
        """Return the usual signals of known images."""
        weights = np.bincount(known.predicted, minlength=classes) + _PRIOR_IMAGES
        sums = np.bincount(known.predicted, known.highest, minlength=classes)
        highest = (sums + _PRIOR_IMAGES * known.highest.mean()) / weights
        spread = (np.std(known.highest - highest[known.predicted]), np.std(known.nearest))
        return cls(highest, weights, float(known.nearest.mean()), np.maximum(spread, 1e-6))

    def deviations(self, signals: _Signals) -> FloatArray:
        """Return the greater deviation (n,) of the two signals; positive for unusual images."""
        return self._greater(signals, self.highest[signals.predicted] - signals.highest)

    def deviations_of_known(self, known: _Signals) -> FloatArray:
        """Return the deviations (n,) of the known images, each from the mean of the others."""
        weights = self.weights[known.predicted]
        low = (self.highest[known.predicted] - known.highest) * weights / (weights - 1)
        return self._greater(known, low)

    def _greater(self, signals: _Signals, low: FloatArray) -> FloatArray:
        far = (signals.nearest - self.nearest) / self.spread[1]
        return np.asarray(np.maximum(low / self.spread[0], far))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Deviations of images that a head was not trained on."""

    known: FloatArray
    """(n,)"""
    left_out: dict[int, FloatArray]
    """By class."""


def _trials(
    task: Task, family: Family, strength: float, groups: _Groups, threads: Threads
) -> list[_Trial]:
    splits = []
    judged = np.unique(groups.folds[groups.folds >= 0])  # a single fold after fine-tuning
    for group in range(groups.count if len(judged) else 0):
        fold = int(judged[group % len(judged)])
        others, held = groups.of_row != group, groups.folds == fold
        learnt, known = others & ~held, others & held
        unknown = ~others & (groups.folds >= 0)
        if learnt.any() and known.any() and unknown.any():
            splits.append((group, fold, learnt, known, unknown))
    if not splits:
        return []
    sets = np.stack([learnt for _, _, learnt, _, _ in splits])
    (scorers,) = family.solve(task, sets, [strength], final=False, threads=threads)

    def judge(number: int) -> _Trial:
        group, fold, _, known, unknown = splits[number]
        rows = np.flatnonzero(known | unknown)
        scores = task.scores(scorers[number], rows)  # never the highest for a left-out class
        signals = _Signals.of(scores, groups.nearest_without(group, fold)[rows])
        known_signals = signals[known[rows]]
        usual = _Usual.of(known_signals, task.classes)
        deviations = usual.deviations(signals)
        targets = np.where(unknown[rows], task.targets[rows], -1)
        return _Trial(
            known=usual.deviations_of_known(known_signals),
            left_out={
                target: deviations[targets == target] for target in np.unique(targets).tolist()[1:]
            },
        )

    return threads.map(judge, range(len(splits)))


def _fit_probability(trials: list[_Trial]) -> tuple[float, float]:
    """Return the slope, at least _MIN_SLOPE, and the bias of the logistic regression.

    Known and unknown images have the same total weight, as do all left-out classes.
    """
    parts = [(trial.known, 0, 1 / len(trials)) for trial in trials]
    classes = sum(len(trial.left_out) for trial in trials)
    parts += [(rows, 1, 1 / classes) for trial in trials for rows in trial.left_out.values()]
    # Prior: a distant image is unknown. A few images alone would not show this.
    parts.append((np.array([_MAX_DEVIATION]), 1, _PRIOR_WEIGHT))
    # Clipped, so that a few extreme values do not dominate.
    deviations = np.clip(
        np.concatenate([rows for rows, _, _ in parts]), -_MAX_DEVIATION, _MAX_DEVIATION
    )
    targets = np.concatenate([np.full(len(rows), target) for rows, target, _ in parts])
    weights = np.concatenate([np.full(len(rows), total / len(rows)) for rows, _, total in parts])
    weights *= len(weights) / weights.sum()
    solution = logistic.solve(
        deviations[:, None], targets, 2, sample_weights=weights[None], strengths=np.array([1.0])
    )
    slope = float(solution.weights[0, 1, 0] - solution.weights[0, 0, 0])
    return max(slope, _MIN_SLOPE), float(solution.bias[0, 1] - solution.bias[0, 0])


def _threshold(probabilities: FloatArray) -> float:
    """Return the threshold above all rows except FALSE_REJECTS, with a margin for float32."""
    return float(np.quantile(probabilities, 1 - FALSE_REJECTS, method="higher")) + 1e-4


def _false_rejects(probabilities: FloatArray, folds: NDArray[np.int64]) -> float:
    """Return the share of rows above the threshold of the other folds' rows."""
    rejected = 0
    for fold in np.unique(folds):
        in_fold = folds == fold
        others = probabilities[in_fold if in_fold.all() else ~in_fold]
        rejected += int(is_unknown(probabilities[in_fold], _threshold(others)).sum())
    return rejected / len(folds)
