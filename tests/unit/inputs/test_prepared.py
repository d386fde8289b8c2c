"""Validation of pixels that a client has preprocessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.errors import ImageError
from topwork.inputs.prepared import to_pixels
from topwork.inputs.preprocess import PreprocessSpec

SPEC = PreprocessSpec(resize=4, crop=3)


def full(value: float, dtype: type[np.generic] = np.float32) -> NDArray[Any]:
    """Return an image of equal values."""
    return np.full((3, 3, 3), value, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.float32])
def test_integers_are_unchanged(dtype: type[np.generic]) -> None:
    """Integers 0 to 255 of any type become the same uint8 pixels."""
    values = np.linspace(0, 255, 27).astype(np.uint8).reshape(3, 3, 3)
    pixels = to_pixels(values.astype(dtype), SPEC)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, values)


def test_fractions_are_rounded() -> None:
    """A fraction becomes the nearest integer."""
    values = full(7.4)
    values[0, 0] = [7.6, 254.7, 0.2]
    pixels = to_pixels(values, SPEC)
    assert pixels[0, 0].tolist() == [8, 255, 0]
    assert pixels[1, 1].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    "values",
    [
        full(-0.01),
        full(255.01),
        full(np.nan),
        full(np.inf),
        full(256, np.uint32),
        full(2**32 - 1, np.uint32),
    ],
)
def test_values_outside_0_to_255_are_refused(values: NDArray[Any]) -> None:
    """A single such value, infinity and NaN included, is enough."""
    mixed = full(9, values.dtype.type)
    mixed[2, 1, 0] = values[0, 0, 0]
    for image in (values, mixed):
        with pytest.raises(ImageError, match="must be 0 to 255") as caught:
            to_pixels(image, SPEC)
        assert caught.value.reason == "PIXELS_INVALID"


def test_image_scaled_to_0_to_1_is_refused() -> None:
    """Fractions without a value above 1 mean that the client divided by 255."""
    with pytest.raises(ImageError, match="not 0 to 1"):
        to_pixels(full(0.5), SPEC)


def test_image_of_zeros_and_ones_is_valid() -> None:
    """Integers 0 and 1 are a very dark image, not a scaled image."""
    values = full(0)
    values[0] = 1
    assert np.array_equal(to_pixels(values, SPEC), values)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 1), (4, 4, 3), (3, 3, 3, 1), (3, 3, 4)])
def test_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Pixels must have the model's crop and three channels."""
    with pytest.raises(ImageError, match=r"the model takes \(3, 3, 3\)"):
        to_pixels(np.zeros(shape, dtype=np.uint8), SPEC)
