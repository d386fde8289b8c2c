"""Limits on the cost of decoding an image, checked before it is decoded."""

from __future__ import annotations

from topwork.errors import ImageError
from topwork.limits import InputLimits

MOST_PASSES = 30
"""Raising it lets decoding of a small file cost more: 30 passes over 50 megapixels take 0.5 s.

It is the limit for an image of the largest size; a smaller image may take more passes.
"""

MOST_STEPS = 100_000
"""Raising it lets a file have more parts that are read in Python; this many take 0.1 s, and a
phone's 48 megapixels 5,000."""


class Steps:
    """Budget of steps for parsing the structure of a file, repeated parts included."""

    def __init__(self) -> None:
        self._left = MOST_STEPS

    def take(self, count: int = 1) -> None:
        """Take ``count`` steps. Raises ImageError if the budget is exceeded."""
        self._left -= count
        if self._left < 0:
            raise ImageError("the image has too many parts")


def check_size(width: int, height: int, limits: InputLimits) -> None:
    """Raise ImageError if an image has too many pixels."""
    pixels = width * height
    if pixels > limits.max_image_pixels:
        raise too_many_pixels(f"the image is {width} x {height} = {pixels} pixels", limits)


def check_passes(finding: str, pixels: int, limits: InputLimits) -> None:
    """Raise ImageError with ``finding`` if all passes over an image decode too many pixels."""
    if pixels > MOST_PASSES * limits.max_image_pixels:
        raise too_many_pixels(finding, limits)


def too_many_pixels(finding: str, limits: InputLimits) -> ImageError:
    """Return the error for an image of more than ``limits.max_image_pixels``."""
    return ImageError(
        f"{finding}; the limit is {limits.max_image_pixels} pixels", reason="IMAGE_TOO_LARGE"
    )
