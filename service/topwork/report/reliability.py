"""Section of the report: calibration, as a reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.metrics import Metrics
from topwork.report import intervals
from topwork.report.intervals import Share

SIDE = 300
"""Length of the diagram's axes: probability 0 to 1 rightwards, accuracy 0 to 1 upwards."""
BARS = 60
"""Height of the highest bar of the histogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Bin of images with about the same probability, with its position in the diagram."""

    low: float
    high: float
    confidence: float
    accuracy: Share
    x: float
    y: float
    y_low: float
    """Lower end of the accuracy's interval; y grows downwards, as in SVG."""
    y_high: float
    bar_x: float
    bar_width: float
    bar_height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Reliability diagram with its interpretation."""

    side: int
    bars: int
    bins: tuple[Bin, ...]
    """Bins with images, lowest first."""
    confidence: float
    """Mean of all images' highest probabilities."""
    tendency: str
    """``overconfident``, ``underconfident``, or empty if the difference is not significant."""


def lay_out(metrics: Metrics) -> Reliability:
    """Return the reliability diagram."""
    sources = [source for source in metrics.reliability if source.images]
    most = max((source.images for source in sources), default=1)
    bins = []
    for source in sources:
        accuracy = intervals.share(round(source.accuracy * source.images), source.images)
        bins.append(
            Bin(
                low=source.low,
                high=source.high,
                confidence=source.confidence,
                accuracy=accuracy,
                x=round(SIDE * source.confidence, 1),
                y=round(SIDE * (1 - accuracy.value), 1),
                y_low=round(SIDE * (1 - accuracy.low), 1),
                y_high=round(SIDE * (1 - accuracy.high), 1),
                bar_x=round(SIDE * source.low + 1.5, 1),
                bar_width=round(SIDE * (source.high - source.low) - 3, 1),
                bar_height=round(max(1.0, BARS * source.images / most), 1),
            )
        )
    confidence = sum(source.images * source.confidence for source in sources) / metrics.images
    tendency = ""
    if confidence > metrics.accuracy_high:
        tendency = "overconfident"
    elif confidence < metrics.accuracy_low:
        tendency = "underconfident"
    return Reliability(
        side=SIDE, bars=BARS, bins=tuple(bins), confidence=confidence, tendency=tendency
    )
