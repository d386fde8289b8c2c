"""Bounds on what decoding one image may cost, checked before it is decoded."""

from __future__ import annotations

from topwork.errors import ImageError
from topwork.limits import InputLimits

MOST_PASSES = 30
"""Passes over an image of the largest size that a decoder may make; a smaller one may take more.

Raising it makes a small file's decoding cost more: 30 empty passes over 50 megapixels take 0.5 s.
"""

MOST_STEPS = 100_000
"""Raising it lets a file have more parts that are read in Python; a phone's 48 megapixels take
5,000, and all of them 0.1 s."""


class Steps:
    """Counter of the steps that the structure of one file takes, however its parts repeat."""

    def __init__(self) -> None:
        self._left = MOST_STEPS

    def take(self, count: int = 1) -> None:
        """Take ``count`` steps. Raises ImageError if there were too many."""
        self._left -= count
        if self._left < 0:
            raise ImageError("the image has too many parts")


def check_size(width: int, height: int, limits: InputLimits) -> None:
    """Raise ImageError if an image has too many pixels."""
    pixels = width * height
    if pixels > limits.max_image_pixels:
        raise too_many_pixels(f"the image is {width} x {height} = {pixels} pixels", limits)


def check_passes(found: str, pixels: int, limits: InputLimits) -> None:
    """Raise ImageError, which says what was ``found``, if so many pixels are too much to decode."""
    if pixels > MOST_PASSES * limits.max_image_pixels:
        raise too_many_pixels(found, limits)


def too_many_pixels(found: str, limits: InputLimits) -> ImageError:
    """Return the error for an image of more than ``limits.max_image_pixels``."""
    return ImageError(
        f"{found}; the limit is {limits.max_image_pixels} pixels", reason="IMAGE_TOO_LARGE"
    )
