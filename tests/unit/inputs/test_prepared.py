"""Pixels that a client made are taken as they are, or refused with a reason."""

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
    """Return an image of one value."""
    return np.full((3, 3, 3), value, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.float32])
def test_whole_numbers_are_the_pixels(dtype: type[np.generic]) -> None:
    """0 to 255 come back as they were, whatever their type."""
    values = np.linspace(0, 255, 27).astype(np.uint8).reshape(3, 3, 3)
    taken = to_pixels(values.astype(dtype), SPEC)
    assert taken.dtype == np.uint8
    assert np.array_equal(taken, values)


def test_fractions_are_rounded() -> None:
    """A fraction becomes the nearest number."""
    values = full(7.4)
    values[0, 0] = [7.6, 254.7, 0.2]
    taken = to_pixels(values, SPEC)
    assert taken[0, 0].tolist() == [8, 255, 0]
    assert taken[1, 1].tolist() == [7, 7, 7]


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
def test_other_numbers_are_refused(values: NDArray[Any]) -> None:
    """What is not 0 to 255 is refused, infinity and NaN too, even in one element."""
    mixed = full(9, values.dtype.type)
    mixed[2, 1, 0] = values[0, 0, 0]
    for one in (values, mixed):
        with pytest.raises(ImageError, match="must be 0 to 255") as caught:
            to_pixels(one, SPEC)
        assert caught.value.reason == "PIXELS_INVALID"


def test_an_image_scaled_to_one_is_refused() -> None:
    """Fractions and nothing above 1: the client divided by 255, and would be told nonsense."""
    with pytest.raises(ImageError, match="not 0 to 1"):
        to_pixels(full(0.5), SPEC)


def test_a_black_image_is_taken() -> None:
    """An image of zeros and ones is a very dark one, not a scaled one."""
    values = full(0)
    values[0] = 1
    assert np.array_equal(to_pixels(values, SPEC), values)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 1), (4, 4, 3), (3, 3, 3, 1), (3, 3, 4)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Pixels must have the model's crop and three channels."""
    with pytest.raises(ImageError, match=r"the model takes \(3, 3, 3\)"):
        to_pixels(np.zeros(shape, dtype=np.uint8), SPEC)
