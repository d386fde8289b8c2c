"""Synthetic probe images: the same pixels on every machine and in every release.

They contain no photo of anybody, and are computed with integers from a hash function, since the
stream of a random generator may change between releases of its library.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LATEST = "noise-1"
"""Name of the probe images of new backbones. Other pixels need another name."""


@dataclass(frozen=True, slots=True)
class _Image:
    """Sum of noise in squares of several sizes, as in photos, which have details of all sizes."""

    weights: tuple[int, ...]
    """Amplitudes of the noise in 2, 4, 8 ... squares per side."""
    gain: int
    """Contrast, in quarters."""
    mean: int
    """Value of a pixel without noise."""


_IMAGES = {
    # Large products saturate, so the images have extreme values: of twenty kinds of noise these
    # differed most between processors with and without VNNI.
    "noise-1": (
        _Image((1, 1, 1, 1, 1, 1, 1), gain=4, mean=50),
        _Image((1, 1, 1, 1, 1, 1, 1), gain=4, mean=200),
        _Image((0, 0, 1), gain=8, mean=128),
        _Image((0, 0, 1, 1, 2, 2, 3), gain=6, mean=128),
    )
}


@functools.lru_cache(maxsize=2)
def probe_images(name: str, crop: int) -> NDArray[np.uint8]:
    """Return read-only images uint8 (N, crop, crop, 3). Raises KeyError for an unknown name."""
    images = [_draw(image, f"{name}:{number}", crop) for number, image in enumerate(_IMAGES[name])]
    result = np.stack(images)
    result.flags.writeable = False
    return result


def _draw(image: _Image, seed: str, crop: int) -> NDArray[np.uint8]:
    total = np.zeros((crop, crop, 3), dtype=np.int16)
    for octave, weight in enumerate(image.weights, start=1):
        if weight:
            total += np.int16(weight) * _noise(f"{seed}:{octave}", 2**octave, crop)
    pixels: NDArray[np.int16] = image.mean + total * np.int16(image.gain) // np.int16(4)
    return pixels.clip(0, 255).astype(np.uint8)


def _noise(seed: str, squares: int, crop: int) -> NDArray[np.int16]:
    """Return noise from -128 to 127 in ``squares`` per side, int16 (crop, crop, 3)."""
    content = hashlib.shake_128(seed.encode()).digest(squares * squares * 3)
    values = np.frombuffer(content, dtype=np.uint8).astype(np.int16) - np.int16(128)
    square = np.arange(crop) * squares // crop
    return values.reshape(squares, squares, 3)[:, square][square]
