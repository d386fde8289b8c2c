"""Out-of-distribution detection, learnt by leave-one-class-out."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import FloatArray
from topwork.bundle.exemplars import FOLDS
from topwork.bundle.head import Unknown
from topwork.bundle.metrics import LeftOutLabel, UnknownMetrics
from topwork.learning import logistic
from topwork.learning.families import Family
from topwork.learning.parallel import SINGLE_THREAD, Threads
from topwork.learning.task import Task

MAX_GROUPS = 10
"""Largest number of groups of classes that are left out in turn; raising it costs more solves."""

_MAX_DEVIATION = 4.0
"""Standard deviations at which signals are clipped."""

_PRIOR_WEIGHT = 0.1
"""Weight of the prior that an image far from all known images is unknown; all data have weight 1.

Without it a ridge head of five kinds of flowers, from 20 photos each, detected no black image and
5 % of X-rays as unknown; with it all and 26 %. From 280 photos each, all are detected either way.
"""

FALSE_REJECTS = 0.05
"""Share of known images above the threshold; raising it detects more unknown images."""


def learn_unknown(
    task: Task,
    family: Family,
    strength: float,
    *,
    labels: tuple[str, ...],
    folds: NDArray[np.int64],
    highest: FloatArray,
    temperature: float,
    threads: Threads = SINGLE_THREAD,
) -> tuple[Unknown, UnknownMetrics] | None:
    """Return the detector of unknown images with its metrics; None if it cannot be evaluated.

    ``highest`` are the highest out-of-fold scores of the task's rows whose fold is not -1; logits
    are scores divided by ``temperature``. Classes are left out in turn: a head is learnt from the
    other classes without one fold. A logistic regression then separates the signals of the images
    of this fold (known) and of the left-out classes (unknown). Signals are in standard deviations
    of the known images, so the weights are valid for the head of all classes.
    """
    groups = _Groups(task, folds, threads)
    trials = _trials(task, family, strength, groups, threads)
    known = _signals(highest, groups.nearest_of_other_folds()[folds >= 0])
    reachable = np.isfinite(known[:, 1])
    if not trials or not reachable.any():
        return None
    known, known_folds = known[reachable], folds[folds >= 0][reachable]
    weights, bias = _fit_weights(trials)

    def probabilities(matrix: FloatArray) -> FloatArray:
        return np.asarray(1 / (1 + np.exp(-np.clip(matrix @ weights + bias, -30, 30))))

    probabilities_of_known = probabilities(_deviations(known, known))
    threshold = _threshold(probabilities_of_known)
    per_label = sorted(
        ((target, trial) for trial in trials for target in trial.left_out), key=itemgetter(0)
    )
    aurocs = [
        auroc(probabilities(trial.known), probabilities(trial.left_out[target]))
        for target, trial in per_label
    ]
    detected = [
        float(is_unknown(probabilities(trial.left_out[target]), threshold).mean())
        for target, trial in per_label
    ]
    slopes = weights / _spread(known)
    return (
        Unknown(
            support=task.support,
            bias=float(bias - slopes @ known.mean(axis=0)),
            logit_weight=float(-slopes[0] * temperature),
            logit_limit=float(
                (_MAX_DEVIATION * _spread(known)[0] - known[:, 0].mean()) / temperature
            ),
            distance_weight=float(slopes[1]),
            threshold=threshold,
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
        self.of_row = task.targets % self.count
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
class _HeldOutSignals:
    """Signals of images that a head was not trained on, in standard deviations (n, 2)."""

    known: FloatArray
    left_out: dict[int, FloatArray]
    """By class."""


def _trials(
    task: Task, family: Family, strength: float, groups: _Groups, threads: Threads
) -> list[_HeldOutSignals]:
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

    def judge(number: int) -> _HeldOutSignals:
        group, fold, _, known, unknown = splits[number]
        rows = np.flatnonzero(known | unknown)
        highest = task.scores(scorers[number], rows).max(axis=1)  # never of a left-out class
        signals = _signals(highest, groups.nearest_without(group, fold)[rows])
        matrix = _deviations(signals, signals[known[rows]])
        targets = np.where(unknown[rows], task.targets[rows], -1)
        return _HeldOutSignals(
            known=matrix[targets < 0],
            left_out={
                target: matrix[targets == target] for target in np.unique(targets).tolist()[1:]
            },
        )

    return threads.map(judge, range(len(splits)))


def _signals(highest: FloatArray, nearest: FloatArray) -> NDArray[np.float64]:
    """Return the negated highest score and the distance (N, 2); both grow for unknown images."""
    return np.stack([-highest, nearest], axis=1).astype(np.float64)


def _deviations(signals: FloatArray, known: FloatArray) -> FloatArray:
    """Return signals (N, 2) in standard deviations of the known images."""
    deviations = (signals - known.mean(axis=0)) / _spread(known)
    deviations[:, 0] = np.maximum(deviations[:, 0], -_MAX_DEVIATION)
    return np.asarray(deviations)


def _fit_weights(trials: list[_HeldOutSignals]) -> tuple[FloatArray, float]:
    """Return the non-negative weights (2,) and the bias of the logistic regression.

    Known and unknown images have the same total weight, as do all left-out classes.
    """
    parts = [(trial.known, 0, 1 / len(trials)) for trial in trials]
    classes = sum(len(trial.left_out) for trial in trials)
    parts += [(rows, 1, 1 / classes) for trial in trials for rows in trial.left_out.values()]
    # Prior: a distant image is unknown. A few images alone would not show this.
    parts.append((np.array([[0.0, _MAX_DEVIATION]]), 1, _PRIOR_WEIGHT))
    # Clipped, so that a few extreme values do not dominate.
    matrix = np.clip(
        np.concatenate([rows for rows, _, _ in parts]), -_MAX_DEVIATION, _MAX_DEVIATION
    )
    targets = np.concatenate([np.full(len(rows), target) for rows, target, _ in parts])
    weights = np.concatenate([np.full(len(rows), total / len(rows)) for rows, _, total in parts])
    weights *= len(weights) / weights.sum()
    used = np.ones(2, dtype=bool)
    while True:
        solution = logistic.solve(
            matrix * used, targets, 2, sample_weights=weights[None], strengths=np.array([1.0])
        )
        slopes = (solution.weights[0, 1] - solution.weights[0, 0]) * used
        if (slopes >= 0).all():
            return slopes, float(solution.bias[0, 1] - solution.bias[0, 0])
        used &= slopes >= 0  # a negative weight is chance: drop the signal


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


def _spread(signals: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(signals.std(axis=0), 1e-6))
