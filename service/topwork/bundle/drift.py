"""Drift of a model's images: their unknown probabilities against those of its own exemplars."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topwork.arrays import FloatArray
from topwork.bundle.numbers import Count

BINS = 10
"""Bins of equal share (deciles): raising it finds drift of fewer images, but of larger numbers."""

CHANCE = 1e-6
"""Probability that chance alone exceeds the threshold; raising it finds less drift of more."""

WINDOW = 1000
"""Raising it finds smaller drift, but later."""

LEAST_IMAGES = 200
"""Raising it delays the first drift after a revision began to serve."""

LEAST_DRIFT = 0.2
"""Least threshold; lowering it takes a change in the mix of labels for drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownDistribution:
    """Unknown probabilities of held-out images of the known labels."""

    edges: tuple[float, ...]
    """Deciles, ascending; a bin contains its lower edge."""
    images: tuple[Count, ...]
    """Images in each of the ``len(edges) + 1`` bins."""

    def __post_init__(self) -> None:
        """Raise ValueError unless there is a bin below, between and above the ascending edges."""
        if len(self.images) != len(self.edges) + 1 or list(self.edges) != sorted(self.edges):
            raise ValueError(f"{len(self.edges)} edges do not make {len(self.images)} bins")

    @classmethod
    def of(cls, probabilities: FloatArray) -> UnknownDistribution:
        """Return the distribution of unknown probabilities (N,), at least one."""
        edges = np.quantile(probabilities, np.arange(1, BINS) / BINS)
        bins = np.searchsorted(edges, probabilities, side="right")
        return cls(
            edges=tuple(edges.tolist()),
            images=tuple(np.bincount(bins, minlength=BINS).tolist()),
        )

    def drift(self, images: Sequence[int]) -> float:
        """Return how much more unusual images are, given their number in each bin; 0 to 1.

        The one-sided Kolmogorov-Smirnov distance at the edges: the largest difference between the
        share of ``images`` and the share of this distribution that lie above an edge.
        """
        above = _shares_above(images) - _shares_above(self.images)
        return max(0.0, float(above.max(initial=0.0)))

    def threshold(self, images: int) -> float:
        """Return the drift that a number of images without drift exceeds with CHANCE at most.

        Smirnov's limit for two samples, of independent images; LEAST_DRIFT if that is larger.
        """
        samples = 1 / images + 1 / max(1, sum(self.images))
        return max(LEAST_DRIFT, math.sqrt(-math.log(CHANCE) / 2 * samples))


class UnknownWindow:
    """Bins of the last WINDOW images of a revision."""

    def __init__(self, reference: UnknownDistribution) -> None:
        self._reference = reference
        self._bins: deque[int] = deque()
        self._images = [0] * len(reference.images)

    def add(self, probability: float) -> None:
        """Add the unknown probability of the next image."""
        bin_ = bisect_right(self._reference.edges, probability)
        self._bins.append(bin_)
        self._images[bin_] += 1
        if len(self._bins) > WINDOW:
            self._images[self._bins.popleft()] -= 1

    def drift(self) -> tuple[float, float] | None:
        """Return the drift and its threshold; None for fewer than LEAST_IMAGES images."""
        if len(self._bins) < LEAST_IMAGES:
            return None
        return self._reference.drift(self._images), self._reference.threshold(len(self._bins))


def _shares_above(images: Sequence[int]) -> FloatArray:
    counts = np.asarray(images, dtype=np.float64)
    return np.asarray(1 - np.cumsum(counts)[:-1] / max(1.0, counts.sum()))
