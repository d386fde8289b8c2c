"""Metrics of a head: accuracy, recall, confusion matrix, calibration, unknowns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.comparison import Z
from topwork.bundle.documents import document
from topwork.bundle.numbers import Count

BINS = 15
"""Bins of the expected calibration error, as in Guo et al."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMetrics:
    """Precision and recall of one label."""

    label: str
    images: Count
    """Images of this label."""
    precision: float
    """Share of the images classified as this label that have it; 0 without such images."""
    recall: float
    """Share of the images with this label that were classified as it; 0 without images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Bin of the reliability diagram: images whose highest probability is in (low, high]."""

    low: float
    high: float
    images: Count
    confidence: float
    """Mean of the highest probabilities; 0 without images."""
    accuracy: float
    """Share of images whose most probable label is correct; 0 without images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutLabel:
    """Out-of-distribution detection of one label, by a head trained without it."""

    label: str
    auroc: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownMetrics:
    """Out-of-distribution detection, measured by leave-one-class-out."""

    auroc: float
    """Probability that an image of a left-out label has a higher score than a known one."""
    false_reject_rate: float
    """Share of held-out images of known labels that are rejected as unknown."""
    detection_rate: float
    """Share of images of left-out labels that are rejected as unknown."""
    per_label: tuple[LeftOutLabel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedHead:
    """Candidate of the head selection, cross-validated on all folds or on the first ones only."""

    head: str
    normalisation: str
    strength: float
    accuracy: float
    log_loss: float
    chosen: bool
    images: int = 0
    """Number of images it was evaluated on; 0: all."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Cross-validated metrics: each image is classified by a head that learnt from other folds."""

    images: Count
    folds: Count
    accuracy: float
    """Share of images whose most probable label is correct."""
    accuracy_low: float
    """Lower bound of the accuracy's 95 % Wilson interval."""
    accuracy_high: float
    """Upper bound of the same interval."""
    log_loss: float
    """Mean negative log probability (nats) of the correct label."""
    per_label: tuple[LabelMetrics, ...]
    """Metrics of each label, in label order."""
    confusion: tuple[tuple[Count, ...], ...]
    """Confusion matrix: confusion[i][j] counts images of label i that were classified as j."""
    ece: float
    """Expected calibration error (Guo et al., ICML 2017) over the bins of ``reliability``."""
    reliability: tuple[ReliabilityBin, ...]
    """BINS bins of equal width, lowest first."""
    unknown: UnknownMetrics | None = None
    """None if the head does not detect unknowns."""
    candidates: tuple[TriedHead, ...] = ()
    """Candidates of the head selection, including the chosen head."""
    right: bytes = b""
    """One bit per image, in evaluation order (``np.packbits``): 1 if its most probable label is
    correct. Allows a paired comparison with a later revision."""


def evaluate(
    targets: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    labels: tuple[str, ...],
    *,
    folds: Count,
) -> Metrics:
    """Return the metrics of probabilities (N, C) for correct class indices (N,)."""
    size = len(labels)
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(targets * size + predicted, minlength=size * size).reshape(size, size)
    right = np.diag(confusion)
    low, high = wilson_interval(int(right.sum()), len(targets))
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    reliability = _reliability(probabilities.max(axis=1), predicted == targets)
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
        ece=sum(group.images * abs(group.confidence - group.accuracy) for group in reliability)
        / len(targets),
        reliability=reliability,
        right=np.packbits(predicted == targets).tobytes(),
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
    """Return the 95 % confidence interval of a proportion (Wilson 1927, JASA 22:209), 0..1."""
    share = successes / trials
    centre = (share + Z * Z / (2 * trials)) / (1 + Z * Z / trials)
    spread = math.sqrt(share * (1 - share) / trials + (Z / (2 * trials)) ** 2)
    half = Z / (1 + Z * Z / trials) * spread
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
