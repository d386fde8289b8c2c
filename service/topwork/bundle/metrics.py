"""How good a head is, said with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMetrics:
    """Quality of one label."""

    label: str
    images: int
    """Images that bear it."""
    precision: float
    """Share of the images called so that are so; 0 when none was called so."""
    recall: float
    """Share of the images that are so that were called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Quality by cross-validation: each image judged by a head that saw no image of its fold."""

    images: int
    folds: int
    accuracy: float
    """Share of images whose most probable label is right."""
    accuracy_low: float
    """Lower end of its 95 % Wilson interval."""
    accuracy_high: float
    """Upper end of the same."""
    log_loss: float
    """Mean negative log probability (nats) of the right label."""
    per_label: tuple[LabelMetrics, ...]
    """In label order."""
    confusion: tuple[tuple[int, ...], ...]
    """confusion[i][j] counts images of label i that were called j."""

    def accuracy_on(self, labels: tuple[str, ...]) -> float:
        """Return the accuracy on the images of ``labels``, all labels being possible answers."""
        rows = [index for index, one in enumerate(self.per_label) if one.label in labels]
        right = sum(self.confusion[row][row] for row in rows)
        return right / max(1, sum(self.per_label[row].images for row in rows))


def evaluate(
    targets: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    labels: tuple[str, ...],
    *,
    folds: int,
) -> Metrics:
    """Return the metrics of probabilities (N, C) against class indices (N,)."""
    size = len(labels)
    called = probabilities.argmax(axis=1)
    confusion = np.bincount(targets * size + called, minlength=size * size).reshape(size, size)
    right = np.diag(confusion)
    low, high = wilson_interval(int(right.sum()), len(targets))
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return Metrics(
        images=len(targets),
        folds=folds,
        accuracy=float(right.sum() / len(targets)),
        accuracy_low=low,
        accuracy_high=high,
        log_loss=float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean()),
        per_label=tuple(
            LabelMetrics(
                label=label,
                images=int(confusion[row].sum()),
                precision=float(right[row] / max(1, confusion[:, row].sum())),
                recall=float(right[row] / max(1, confusion[row].sum())),
            )
            for row, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927, JASA 22:209), 0..1."""
    z = 1.959964
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    half = z / (1 + z * z / trials) * spread
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
