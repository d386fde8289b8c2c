"""Section of the report: the reliability diagram, which shows calibration."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.metrics import Metrics
from topwork.report import intervals
from topwork.report.intervals import Share

SIDE = 300
"""Units of the diagram's sides: probability 0 to 1 rightwards, share right 0 to 1 upwards."""
BARS = 60
"""Height of the highest bar of the histogram below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Images with about the same probability, and where the diagram shows them, in its units."""

    low: float
    high: float
    confidence: float
    right: Share
    x: float
    y: float
    y_low: float
    """Of the interval's lower end; downwards, as in SVG."""
    y_high: float
    bar_x: float
    bar_width: float
    bar_height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """The reliability diagram and what it says."""

    side: int
    bars: int
    bins: tuple[Bin, ...]
    """Those that have images, lowest first."""
    confidence: float
    """Mean of all images' highest probabilities."""
    tendency: str
    """``too sure``, ``too modest``, or empty where the accuracy's interval holds the mean."""


def lay_out(metrics: Metrics) -> Reliability:
    """Return the diagram."""
    some = [one for one in metrics.reliability if one.images]
    most = max((one.images for one in some), default=1)
    bins = []
    for one in some:
        right = intervals.share(round(one.accuracy * one.images), one.images)
        bins.append(
            Bin(
                low=one.low,
                high=one.high,
                confidence=one.confidence,
                right=right,
                x=round(SIDE * one.confidence, 1),
                y=round(SIDE * (1 - right.value), 1),
                y_low=round(SIDE * (1 - right.low), 1),
                y_high=round(SIDE * (1 - right.high), 1),
                bar_x=round(SIDE * one.low + 1.5, 1),
                bar_width=round(SIDE * (one.high - one.low) - 3, 1),
                bar_height=round(max(1.0, BARS * one.images / most), 1),
            )
        )
    confidence = sum(one.images * one.confidence for one in some) / metrics.images
    tendency = ""
    if confidence > metrics.accuracy_high:
        tendency = "too sure"
    elif confidence < metrics.accuracy_low:
        tendency = "too modest"
    return Reliability(
        side=SIDE, bars=BARS, bins=tuple(bins), confidence=confidence, tendency=tendency
    )
