"""Tone mapping of deep greyscale: robustness to outliers, and the mapping of stored specs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.bad_images import grey_png
from support.dicoms import dicom
from support.pictures import encode
from support.tiffs import WHITE_IS_ZERO, tiff

from topwork.inputs.grey import share_of_white, to_eight_bits
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec

SPEC = PreprocessSpec(resize=64, crop=64, deep_grey="percentiles")


def scene(seed: int = 0, top: int = 900, side: int = 64) -> NDArray[Any]:
    """Return a noisy ramp of samples between 100 and ``top``."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    noise = np.random.default_rng(seed).normal(0, 10, (side, side))
    samples: NDArray[Any] = 100 + (top - 100) * (x + y) / 2 + noise
    return samples.clip(0, top).astype(np.uint16)


def as_png(samples: NDArray[Any]) -> bytes:
    height, width = samples.shape
    return grey_png(samples.astype(">u2").tobytes(), width=width, height=height, depth=16)


def as_pgm(samples: NDArray[Any]) -> bytes:
    height, width = samples.shape
    return b"P5 %d %d 65535\n" % (width, height) + samples.astype(">u2").tobytes()


def as_jpeg2000(samples: NDArray[Any]) -> bytes:
    return encode(Image.fromarray(samples.astype(np.uint16)), "JPEG2000")


WRITERS = {
    "PNG": as_png,
    "TIFF": tiff,
    "big-endian TIFF": lambda samples: tiff(samples, big_endian=True),
    "white-is-zero TIFF": lambda samples: tiff(samples, WHITE_IS_ZERO),
    "signed TIFF": lambda samples: tiff(samples.astype(np.int16)),
    "TIFF of 32 bits": lambda samples: tiff(samples.astype(np.int32)),
    "PGM": as_pgm,
    "JPEG 2000": as_jpeg2000,
    "DICOM": dicom,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("bright", [1_023, 1_024, 4_095, 4_096, 16_384, 32_767])
def test_bright_outlier_changes_no_other_pixel(kind: str, bright: int) -> None:
    """The shades of all other pixels do not depend on the brightest pixel."""
    samples = scene()
    samples[5, 7] = 901
    before = preprocess(WRITERS[kind](samples), SPEC).astype(int)
    samples[5, 7] = bright
    after = preprocess(WRITERS[kind](samples), SPEC).astype(int)
    others = np.ones((64, 64), bool)
    others[5, 7] = False
    assert before.std() > 40
    assert np.abs(after - before)[others].max() <= 1


@pytest.mark.parametrize("dark", [-1, -1_024, -1_025, -20_000])
def test_dark_outlier_changes_no_other_pixel(dark: int) -> None:
    """The shades of all other pixels do not depend on the darkest pixel."""
    samples = scene().astype(np.int16) - 400
    samples[5, 7] = -300
    before = to_eight_bits(samples, "percentiles").astype(int)
    samples[5, 7] = dark
    after = to_eight_bits(samples, "percentiles").astype(int)
    after[5, 7] = before[5, 7]
    assert np.abs(after - before).max() <= 1


def test_brightness_is_continuous() -> None:
    """As the samples of a picture rise, the mean shade does not jump."""
    shades = [to_eight_bits(scene(top=top), "percentiles").mean() for top in range(990, 1_060, 2)]
    assert np.abs(np.diff(shades)).max() < 1


def test_exposure_changes_no_shade() -> None:
    """The same scene in 12 and in 16 bits gives the same shades."""
    samples = scene(top=4_095)
    twelve = to_eight_bits(samples, "percentiles").astype(int)
    sixteen = to_eight_bits(samples * np.uint16(16), "percentiles")
    assert np.abs(twelve - sixteen).max() <= 1


def test_zero_is_black_and_brightest_part_is_white() -> None:
    """The mapping is proportional: half the mean of the brightest samples is half of white."""
    ramp = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    shades = to_eight_bits(ramp, "percentiles")
    assert shades[0, 0] == 0
    assert shades[-1, -1] == 255
    assert abs(int(shades.ravel()[9_945 // 2]) - 127) <= 1


@pytest.mark.parametrize("value", [0, 1, 700, 65_535])
@pytest.mark.parametrize("side", [1, 2, 64])
def test_uniform_picture_is_black_or_white(value: int, side: int) -> None:
    """A picture of equal samples is white, or black if they are 0, without division by zero."""
    shades = to_eight_bits(np.full((side, side), value, np.uint16), "percentiles")
    assert (shades == (255 if value else 0)).all()


def test_few_bright_pixels_on_black_are_white() -> None:
    """If even the brightest percentiles are black, the brightest sample is white."""
    samples = np.zeros((100, 100), np.uint16)
    samples[3, 3] = 500
    assert to_eight_bits(samples, "percentiles")[3, 3] == 255


def test_transparent_samples_are_not_counted() -> None:
    """Transparent samples are white and excluded from the statistics."""
    samples = scene()
    samples[:32] = 65_535
    got = to_eight_bits(samples, "percentiles", transparent=65_535)
    assert (got[:32] == 255).all()
    assert (got[32:] == to_eight_bits(samples[32:], "percentiles")).all()


def test_share_of_white_takes_values_in_any_order() -> None:
    """The values of a look-up table need not be sorted."""
    values, counts = np.array([9.0, 1.0, 5.0]), np.array([10, 10, 10])
    assert share_of_white(values, counts, zero_is_black=False).tolist() == [1, 0, 0.5]


def test_depth_mapping_is_unchanged() -> None:
    """Models trained with ``depth`` keep it: the brightest sample selects 10 or 12 bits."""
    old = PreprocessSpec(resize=64, crop=64, deep_grey="depth")
    samples = np.full((64, 64), 900, np.uint16)
    for bright, shade in ((1_023, 225), (1_024, 56)):
        samples[5, 7] = bright
        assert preprocess(as_png(samples), old)[0, 0, 0] == shade
