"""Validation of pixels that a client has decoded and preprocessed itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageError
from topwork.inputs.image import Pixels
from topwork.inputs.preprocess import PreprocessSpec


def to_pixels(values: NDArray[Any], spec: PreprocessSpec) -> Pixels:
    """Return ``values`` (crop, crop, 3), RGB, 0..255, as pixels; fractions are rounded.

    Raises ImageError if the shape differs, a value is not a number 0..255, or the image was scaled
    to 0..1: it has fractions and no value above 1.
    """
    expected = (spec.crop, spec.crop, 3)
    if values.shape != expected:
        raise _invalid(f"has shape {values.shape}; the model takes {expected}")
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # also true for NaN
        raise _invalid(f"has values from {low} to {high}; they must be 0 to 255")
    pixels: Pixels = np.rint(values).astype(np.uint8)
    if high <= 1 and (pixels != values).any():
        raise _invalid(f"has fractions up to {high}: values must be 0 to 255, not 0 to 1")
    return pixels


def _invalid(fault: str) -> ImageError:
    return ImageError(f"the image {fault}", reason="PIXELS_INVALID")
