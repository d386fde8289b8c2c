"""Out-of-distribution detection, learnt by leaving out each known class in turn."""

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
from topwork.learning.sharing import ALONE, Threads
from topwork.learning.task import Task

GROUPS = 10
"""Heads that are learnt without some classes; with more classes than that each lacks several."""

_EXTREME = 4.0
"""Deviations beyond which a sign says no more."""

_FAR = 0.1
"""What the belief counts that an image far from all known ones is unknown; all others count 1.

Without it a ridge head of five kinds of flowers, from 20 photos each, called no black image unknown
and 5 % of X-rays; with it all and 26 %. From 280 photos each all are called so either way.
"""

FALSE_REJECTS = 0.05
"""Share of known images that the threshold lets be called unknown."""


def learn_unknown(
    task: Task,
    family: Family,
    strength: float,
    *,
    labels: tuple[str, ...],
    folds: NDArray[np.int64],
    highest: FloatArray,
    temperature: float,
    threads: Threads = ALONE,
) -> tuple[Unknown, UnknownMetrics] | None:
    """Return what tells the unknown and how well it does; None where that cannot be tried.

    ``highest`` are the highest scores of the task's rows whose fold is not -1, by heads that did
    not see them; the head's logits are scores divided by ``temperature``. Classes are left out in
    turn. A head is learnt from the others, less a fold; the signs of that fold's images and of
    those left out, which it never saw, are weighed by a logistic regression. Signs count in
    standard deviations of the known ones, so the weights hold for a head that knows all classes.
    """
    groups = _Groups(task, folds, threads)
    trials = _trials(task, family, strength, groups, threads)
    known = _signs(highest, groups.nearest_of_other_folds()[folds >= 0])
    reachable = np.isfinite(known[:, 1])
    if not trials or not reachable.any():
        return None
    known, known_folds = known[reachable], folds[folds >= 0][reachable]
    weights, bias = _weigh(trials)

    def probabilities(matrix: FloatArray) -> FloatArray:
        return np.asarray(1 / (1 + np.exp(-np.clip(matrix @ weights + bias, -30, 30))))

    mine = probabilities(_deviations(known, known))
    threshold = _limit(mine)
    per_label = sorted(
        ((target, trial) for trial in trials for target in trial.left_out), key=itemgetter(0)
    )
    aurocs = [
        auroc(probabilities(trial.known), probabilities(trial.left_out[target]))
        for target, trial in per_label
    ]
    found = [
        float(called_unknown(probabilities(trial.left_out[target]), threshold).mean())
        for target, trial in per_label
    ]
    slopes = weights / _spread(known)
    return (
        Unknown(
            support=task.support,
            bias=float(bias - slopes @ known.mean(axis=0)),
            logit_weight=float(-slopes[0] * temperature),
            logit_limit=float((_EXTREME * _spread(known)[0] - known[:, 0].mean()) / temperature),
            distance_weight=float(slopes[1]),
            threshold=threshold,
        ),
        UnknownMetrics(
            auroc=float(np.mean(aurocs)),
            false_reject_rate=_false_rejects(mine, known_folds),
            detection_rate=float(np.mean(found)),
            per_label=tuple(
                LeftOutLabel(label=labels[target], auroc=value)
                for (target, _), value in zip(per_label, aurocs, strict=True)
            ),
        ),
    )


def called_unknown(probabilities: FloatArray, threshold: float) -> NDArray[np.bool_]:
    """Return whether serving calls images of these unknown probabilities (N,) unknown."""
    return probabilities >= threshold


def auroc(known: FloatArray, unknown: FloatArray) -> float:
    """Return the chance that one of ``unknown`` is larger than one of ``known``; ties count half.

    The Mann-Whitney statistic.
    """
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, side="left")
    equal = np.searchsorted(ordered, unknown, side="right") - below
    return float((below + equal / 2).mean() / len(known))


class _Groups:
    """Classes in groups that are left out in turn, and what lies near to which row."""

    def __init__(self, task: Task, folds: NDArray[np.int64], threads: Threads) -> None:
        self.folds = folds
        self.count = min(task.classes, GROUPS)
        self.of_row = task.targets % self.count
        columns = FOLDS + 1  # the first for rows that are never judged
        cells = self.of_row * columns + folds + 1
        nearest = task.nearest(cells, self.count * columns, threads)
        self._nearest = nearest.reshape(-1, self.count, columns)

    def nearest_of_other_folds(self) -> FloatArray:
        """Return the squared distances (N,) from rows to the nearest row of another fold."""
        by_fold = self._nearest.min(axis=1)
        by_fold[np.arange(len(by_fold)), self.folds + 1] = np.inf
        return np.asarray(by_fold.min(axis=1))

    def nearest_without(self, group: int, fold: int) -> FloatArray:
        """Return those (N,) to the nearest row of another group and another fold."""
        others = np.delete(np.delete(self._nearest, group, axis=1), fold + 1, axis=2)
        return np.asarray(others.min(axis=(1, 2), initial=np.inf))


@dataclass(frozen=True, slots=True)
class _HeldOutSigns:
    """The signs of images that a head did not see, in deviations (n, 2)."""

    known: FloatArray
    left_out: dict[int, FloatArray]
    """By class."""


def _trials(
    task: Task, family: Family, strength: float, groups: _Groups, threads: Threads
) -> list[_HeldOutSigns]:
    tried = []
    judged = np.unique(groups.folds[groups.folds >= 0])  # one fold alone after fine-tuning
    for group in range(groups.count if len(judged) else 0):
        fold = int(judged[group % len(judged)])
        others, held = groups.of_row != group, groups.folds == fold
        learnt, known = others & ~held, others & held
        unknown = ~others & (groups.folds >= 0)
        if learnt.any() and known.any() and unknown.any():
            tried.append((group, fold, learnt, known, unknown))
    if not tried:
        return []
    sets = np.stack([learnt for _, _, learnt, _, _ in tried])
    (scorers,) = family.solve(task, sets, [strength], final=False, threads=threads)

    def judge(number: int) -> _HeldOutSigns:
        group, fold, _, known, unknown = tried[number]
        rows = np.flatnonzero(known | unknown)
        highest = task.scores(scorers[number], rows).max(axis=1)  # never of a class left out
        signs = _signs(highest, groups.nearest_without(group, fold)[rows])
        matrix = _deviations(signs, signs[known[rows]])
        targets = np.where(unknown[rows], task.targets[rows], -1)
        return _HeldOutSigns(
            known=matrix[targets < 0],
            left_out={one: matrix[targets == one] for one in np.unique(targets).tolist()[1:]},
        )

    return threads.map(judge, range(len(tried)))


def _signs(highest: FloatArray, nearest: FloatArray) -> NDArray[np.float64]:
    """Return the two signs (N, 2), growing with the unknown."""
    return np.stack([-highest, nearest], axis=1).astype(np.float64)


def _deviations(signs: FloatArray, known: FloatArray) -> FloatArray:
    """Return signs (N, 2) in standard deviations of the known ones."""
    deviations = (signs - known.mean(axis=0)) / _spread(known)
    deviations[:, 0] = np.maximum(deviations[:, 0], -_EXTREME)
    return np.asarray(deviations)


def _weigh(trials: list[_HeldOutSigns]) -> tuple[FloatArray, float]:
    """Return the weights (2,), none below 0, and the bias of the logistic regression.

    Known and unknown images count alike, as do all classes.
    """
    parts = [(trial.known, 0, 1 / len(trials)) for trial in trials]
    classes = sum(len(trial.left_out) for trial in trials)
    parts += [(one, 1, 1 / classes) for trial in trials for one in trial.left_out.values()]
    # Known before any data, and all that a handful of images would not show:
    parts.append((np.array([[0.0, _EXTREME]]), 1, _FAR))
    # A few extremes must not decide: beyond four deviations all is equally strange.
    matrix = np.clip(np.concatenate([rows for rows, _, _ in parts]), -_EXTREME, _EXTREME)
    targets = np.concatenate([np.full(len(rows), target) for rows, target, _ in parts])
    weights = np.concatenate([np.full(len(rows), total / len(rows)) for rows, _, total in parts])
    weights *= len(weights) / weights.sum()
    kept = np.ones(2, dtype=bool)
    while True:
        solution = logistic.solve(
            matrix * kept, targets, 2, sample_weights=weights[None], strengths=np.array([1.0])
        )
        slopes = (solution.weights[0, 1] - solution.weights[0, 0]) * kept
        if (slopes >= 0).all():
            return slopes, float(solution.bias[0, 1] - solution.bias[0, 0])
        kept &= slopes >= 0  # a sign that points the wrong way is chance: do without it


def _limit(probabilities: FloatArray) -> float:
    """Return what all but FALSE_REJECTS of the rows lie below, by more than float32 rounds."""
    return float(np.quantile(probabilities, 1 - FALSE_REJECTS, method="higher")) + 1e-4


def _false_rejects(probabilities: FloatArray, folds: NDArray[np.int64]) -> float:
    """Return the share of rows above the threshold that the other folds' rows would set."""
    rejected = 0
    for fold in np.unique(folds):
        mine = folds == fold
        others = probabilities[mine if mine.all() else ~mine]
        rejected += int(called_unknown(probabilities[mine], _limit(others)).sum())
    return rejected / len(folds)


def _spread(signs: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(signs.std(axis=0), 1e-6))
