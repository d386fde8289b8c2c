"""Paired comparison of two heads on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Gain in accuracy as a share (0.01 is one percentage point), with its 95 % interval."""

    images: int
    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return text such as ``+1.25 points (-0.10 to 2.60) on 400 images``."""
        gain, low, high = 100 * self.gain, 100 * self.low, 100 * self.high
        return f"{gain:+.2f} points ({low:.2f} to {high:.2f}) on {self.images} images"


def paired(new: NDArray[np.bool_], old: NDArray[np.bool_]) -> Difference:
    """Return the gain of ``new`` over ``old``, each (N,) True where the head was right.

    The interval is Agresti and Min's for paired proportions (Statistics in Medicine 24, 2005).
    """
    images = len(new)
    won, lost = int(np.sum(new & ~old)), int(np.sum(old & ~new))
    centre = (won - lost) / (images + 2)
    spread = ((won + lost + 1) - (won - lost) ** 2 / (images + 2)) ** 0.5 / (images + 2)
    low, high = (min(1.0, max(-1.0, centre + z * spread)) for z in (-1.959964, 1.959964))
    return Difference(images=images, gain=(won - lost) / max(images, 1), low=low, high=high)
