"""Confidence intervals of shares and of changes of shares."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from topwork.bundle.metrics import wilson_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Share of images with its 95 % Wilson interval."""

    images: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyChange:
    """Accuracy before and after, with the 95 % interval of the change."""

    before: float
    after: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """Change, -1 to 1."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``not significant`` if the interval includes 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not significant"


def change(before: Share, after: Share) -> AccuracyChange:
    """Return the change between shares of independent samples.

    Newcombe's interval (1998, Statistics in Medicine 17:873, method 10). It is too wide if the
    samples have images in common.
    """
    value = after.value - before.value
    return AccuracyChange(
        before=before.value,
        after=after.value,
        low=value - math.hypot(after.value - after.low, before.high - before.value),
        high=value + math.hypot(after.high - after.value, before.value - before.low),
    )


def share(successes: int, images: int) -> Share:
    """Return ``successes`` of ``images`` as a share; ``images`` is at least 1."""
    low, high = wilson_interval(successes, images)
    return Share(images=images, value=successes / images, low=low, high=high)


def axis(lows: Iterable[float]) -> float:
    """Return the start of an axis of interval bars that ends at 1: a tenth below all bars."""
    return max(0.0, math.floor(min(lows, default=0.0) * 10 - 1e-9) / 10)
