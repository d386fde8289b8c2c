"""Bounds on what decoding one image may cost, checked before it is decoded."""

from __future__ import annotations

from topwork.bundle.limits import Limits
from topwork.errors import ImageError

MOST_PASSES = 30
"""Passes over an image of the largest size that a decoder may make; a smaller one may take more.

Raising it makes a small file's decoding cost more: 30 empty passes over 50 megapixels take 0.5 s.
"""


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raise ImageError if an image has too many pixels."""
    pixels = width * height
    if pixels > limits.max_image_pixels:
        raise too_many_pixels(f"the image is {width} x {height} = {pixels} pixels", limits)


def check_passes(found: str, pixels: int, limits: Limits) -> None:
    """Raise ImageError, which says what was ``found``, if so many pixels are too much to decode."""
    if pixels > MOST_PASSES * limits.max_image_pixels:
        raise too_many_pixels(found, limits)


def too_many_pixels(found: str, limits: Limits) -> ImageError:
    """Return the error for an image of more than ``limits.max_image_pixels``."""
    return ImageError(
        f"{found}; the limit is {limits.max_image_pixels} pixels", reason="IMAGE_TOO_LARGE"
    )
