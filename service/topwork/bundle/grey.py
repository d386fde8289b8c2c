"""Which 8 bits of a greyscale sample are kept, where it has more, or a sign."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from topwork.errors import ImageError

DEPTHS = (8, 10, 12, 14, 16)
"""The sample depths, in bits, that scanners and cameras have, whatever container they write."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF 6.0
_WHITE_IS_ZERO = 0
_SIGNED = (2,)


def is_deep(image: Image.Image) -> bool:
    """Return whether ``image`` is greyscale, but not of unsigned samples of up to 8 bits."""
    return (
        image.mode == "I"
        or image.mode.startswith("I;16")
        or (image.mode == "L" and _tags(image).get(_SAMPLE_FORMAT) == _SIGNED)
    )


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a deep image in mode L: the upper 8 bits of its sample depth.

    The depth is the smallest of DEPTHS that holds the largest sample, so that 12 bits in a
    container of 16 keep their contrast. Signed samples are first lifted by the smallest power of
    two that leaves none below 0. Transparent samples become white. Raises ImageError if 16 bits do
    not hold the samples.
    """
    tags = _tags(image)
    if image.mode == "I" and _is_swapped(image):
        raise ImageError(
            "the image is a compressed big-endian TIFF of signed samples, which cannot be read; "
            "save it uncompressed or little-endian"
        )
    samples = np.asarray(image)
    if samples.dtype == np.uint8:
        samples = samples.view(np.int8).astype(np.int16)
    transparent = None
    if "transparency" in image.info:
        transparent = samples == image.info["transparency"]
        samples = np.where(transparent, 0, samples)
    low, high = int(samples.min()), int(samples.max())
    lift = 1 << (-low - 1).bit_length() if low < 0 else 0
    # A TIFF may say 12 bits; 16 or 32 are but the container. Its MaxSampleValue says nothing:
    # TIFF 6.0 forbids its use for display.
    said = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    least = said if said < 16 else DEPTHS[0]
    depth = next((bits for bits in DEPTHS if bits >= least and high + lift < 1 << bits), None)
    if depth is None:
        raise ImageError(f"the image has samples from {low} to {high}; 16 bits are supported")
    grey = ((samples + lift) >> (depth - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns only up to 8 bits
        grey = 255 - grey
    if transparent is not None:
        grey[transparent] = 255
    return Image.fromarray(grey)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _is_swapped(image: Image.Image) -> bool:
    """Return whether Pillow would show the bytes of the samples in the wrong order.

    libtiff hands them over in the machine's order, but Pillow knows no signed mode for that.
    """
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.tag_v2.prefix == b"MM"
        and image.info.get("compression") != "raw"
    )
