"""Metrics of a head, with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.documents import document
from topwork.bundle.numbers import Count

BINS = 15
"""Bins of the calibration error, as in Guo et al."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMetrics:
    """Quality of one label."""

    label: str
    images: Count
    """Images that bear it."""
    precision: float
    """Share of the images called so that are so; 0 when none was called so."""
    recall: float
    """Share of the images that are so that were called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """The images whose highest probability lies in (low, high]."""

    low: float
    high: float
    images: Count
    confidence: float
    """Mean of their highest probabilities; 0 without images."""
    accuracy: float
    """Share of them whose most probable label is right; 0 without images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutLabel:
    """How well a label is told from the known ones by a head that never saw it."""

    label: str
    auroc: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownMetrics:
    """How well images of no known label are recognised, by leaving out each label in turn."""

    auroc: float
    """Chance that an image of a left-out label looks less known than one of a known label."""
    false_reject_rate: float
    """Share of known images, unseen by the head, that are called unknown."""
    detection_rate: float
    """Share of images of left-out labels that are called unknown."""
    per_label: tuple[LeftOutLabel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedHead:
    """A head that was tried by cross-validation: on all folds, or on the first ones only."""

    head: str
    normalisation: str
    strength: float
    accuracy: float
    log_loss: float
    chosen: bool
    images: int = 0
    """How many it was judged on; 0: all."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Quality by cross-validation: each image judged by a head that saw no image of its fold."""

    images: Count
    folds: Count
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
    confusion: tuple[tuple[Count, ...], ...]
    """confusion[i][j] counts images of label i that were called j."""
    ece: float
    """Expected calibration error (Guo et al., ICML 2017) over the bins of ``reliability``."""
    reliability: tuple[ReliabilityBin, ...]
    """BINS bins of equal width, lowest first."""
    unknown: UnknownMetrics | None = None
    """None where the model cannot tell what is unknown to it."""
    candidates: tuple[TriedHead, ...] = ()
    """The heads that were tried, the chosen one among them."""
    right: bytes = b""
    """A bit an image, in the order in which they were judged (``np.packbits``): whether its most
    probable label is its own. So a later revision can be compared with this one image by image."""

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
    folds: Count,
) -> Metrics:
    """Return the metrics of probabilities (N, C) against class indices (N,)."""
    size = len(labels)
    called = probabilities.argmax(axis=1)
    confusion = np.bincount(targets * size + called, minlength=size * size).reshape(size, size)
    right = np.diag(confusion)
    low, high = wilson_interval(int(right.sum()), len(targets))
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    reliability = _reliability(probabilities.max(axis=1), called == targets)
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
        ece=sum(one.images * abs(one.confidence - one.accuracy) for one in reliability)
        / len(targets),
        reliability=reliability,
        right=np.packbits(called == targets).tobytes(),
    )


def _reliability(
    confidence: NDArray[np.floating], right: NDArray[np.bool_]
) -> tuple[ReliabilityBin, ...]:
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    some = np.maximum(images, 1)
    confidences = np.bincount(bins, weights=confidence, minlength=BINS) / some
    accuracies = np.bincount(bins, weights=right, minlength=BINS) / some
    return tuple(
        ReliabilityBin(
            low=index / BINS,
            high=(index + 1) / BINS,
            images=int(images[index]),
            confidence=float(confidences[index]),
            accuracy=float(accuracies[index]),
        )
        for index in range(BINS)
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927, JASA 22:209), 0..1."""
    z = 1.959964
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    half = z / (1 + z * z / trials) * spread
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
