"""Thumbnails: their size, and that sizes can be compared."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from topwork.inputs.duplicates import alike
from topwork.inputs.image import Pixels
from topwork.inputs.thumbnail import SIDE, thumbnail


def photo(seed: int, side: int = 224) -> Pixels:
    """Return a square of random soft spots."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("pixels", "wanted", "side"), [(224, 64, 64), (224, 160, 160), (128, 160, 128), (16, 160, 64)]
)
def test_thumbnail_is_no_larger_than_the_photo(pixels: int, wanted: int, side: int) -> None:
    """A smaller photo has a thumbnail of its own size, but at least the usual one."""
    found = Image.open(io.BytesIO(thumbnail(photo(0, pixels), wanted)))
    assert found.size == (side, side)


def test_default_thumbnail_has_the_usual_side() -> None:
    """As all that earlier releases made."""
    assert thumbnail(photo(0)) == thumbnail(photo(0), SIDE)


def test_thumbnails_of_two_sizes_are_compared() -> None:
    """A model may have both: the same photo is alike, another one is not."""
    assert alike(thumbnail(photo(0)), thumbnail(photo(0), 160))
    assert not alike(thumbnail(photo(0)), thumbnail(photo(1), 160))
