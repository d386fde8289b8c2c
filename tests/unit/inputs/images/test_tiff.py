"""TIFF: sample layouts, bit depths and photometric interpretations, and refusals."""

from __future__ import annotations

import itertools
import struct
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.bad_images import grey_tiff
from support.pictures import encode
from support.tiffs import (
    BITS,
    BLACK_IS_ZERO,
    CMYK,
    COMPRESSION,
    EXTRA,
    FORMAT,
    HEIGHT,
    PALETTE,
    PALETTE_COLOUR,
    PHOTOMETRIC,
    PLANAR,
    RGB,
    ROWS,
    SAMPLES,
    TILE_HEIGHT,
    TILE_WIDTH,
    WHITE_IS_ZERO,
    WIDTH,
    YCBCR,
    tiff,
    tiff_of,
)

from topwork.errors import ImageError
from topwork.inputs.grey import to_eight_bits
from topwork.inputs.image import preprocess
from topwork.inputs.images import tiff_directory
from topwork.inputs.preprocess import PreprocessSpec

SPEC = PreprocessSpec(resize=20, crop=16, deep_grey="percentiles")
LAYOUTS = [
    {"big_endian": big, "deflated": deflated, "planar": planar, "rows": rows}
    for big, deflated, planar, rows in itertools.product(*[(False, True)] * 3, (0, 7))
]
ONE_PLANE = [layout for layout in LAYOUTS if not layout["planar"]]


def samples(count: int, dtype: str, low: int = 0, high: int = 255) -> NDArray[Any]:
    """Return smooth samples (20, 24, count), or (20, 24) if ``count`` is 1."""
    y, x = np.mgrid[:20, :24]
    planes = [((3 * x * (plane + 1) + 7 * y * (plane + 2)) % 97) / 96 for plane in range(count)]
    stacked = (np.stack(planes, axis=2) * (high - low) + low).round().astype(dtype)
    return stacked[..., 0] if count == 1 else stacked


def picture(image: Image.Image) -> NDArray[Any]:
    """Return the pixels of an image by way of PNG."""
    return preprocess(encode(image), SPEC).astype(int)


def named(layout: dict[str, Any]) -> str:
    """Return the test id of a layout."""
    return "-".join(name for name, value in layout.items() if value) or "plain"


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("photometric", "count", "tags", "mode"),
    [
        (RGB, 3, {}, "RGB"),
        (RGB, 4, {EXTRA: 2}, "RGBA"),
        (RGB, 4, {EXTRA: 1}, "RGBa"),
        (RGB, 4, {EXTRA: 0}, "RGB"),
        (RGB, 4, {}, "RGBA"),
        (CMYK, 4, {}, "CMYK"),
    ],
    ids=["RGB", "RGBA", "premultiplied", "RGBX", "undeclared", "CMYK"],
)
def test_colours_in_any_layout_become_upper_bits(
    photometric: int, count: int, tags: dict[int, Any], mode: str, bits: int, layout: dict[str, Any]
) -> None:
    """Planar or interleaved, 8 or 16 bits, either byte order give the upper 8 bits."""
    stored = samples(count, f"u{bits // 8}", high=2**bits - 1)
    upper = (stored >> (bits - 8)).astype(np.uint8)
    bands = [Image.fromarray(upper[..., band]) for band in range(len(mode))]
    image = Image.merge(mode, bands)
    want = picture(image.convert("RGBA" if mode == "RGBa" else "RGB" if mode == "CMYK" else mode))
    got = preprocess(tiff(stored, photometric, tags=tags, **layout), SPEC)
    assert (np.abs(got - want) <= 1).all()


@pytest.mark.parametrize("layout", ONE_PLANE, ids=named)
@pytest.mark.parametrize("photometric", [BLACK_IS_ZERO, WHITE_IS_ZERO])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("u1", 0, 255), ("u2", 0, 4_095), ("u2", 0, 65_535), ("u4", 0, 60_000),
     ("i1", -128, 127), ("i2", -1_024, 3_071), ("i2", -32_768, 32_767), ("i4", -1_000, 400)],
)  # fmt: skip
def test_grey_in_any_layout_is_decoded(
    dtype: str, low: int, high: int, photometric: int, layout: dict[str, Any]
) -> None:
    """All depths, signs, byte orders and polarities but compressed big-endian 32 bits."""
    stored = samples(1, dtype, low, high)
    content = tiff(stored, photometric, **layout)
    if dtype[1] == "4" and layout["big_endian"] and layout["deflated"]:
        with pytest.raises(
            ImageError, match="32 bits, which is not supported; save it uncompressed"
        ):
            preprocess(content, SPEC)
        return
    shades = stored if dtype == "u1" else to_eight_bits(stored, SPEC.deep_grey)
    want = picture(Image.fromarray(255 - shades if photometric == WHITE_IS_ZERO else shades))
    assert want.std() > 40
    assert (np.abs(preprocess(content, SPEC) - want) <= 1).all()


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 12])
def test_packed_grey_is_decoded(
    depth: int, *, white_is_zero: bool, big_endian: bool, deflated: bool
) -> None:
    """Samples that share bytes, in either byte order, with white or black as zero."""
    stored = samples(1, "u2", high=2**depth - 1)
    bits = stored[..., None] >> np.arange(depth)[::-1] & 1
    packed = np.packbits(bits.reshape(20, -1).astype(np.uint8), axis=1).tobytes()
    shades = np.rint(stored / (2**depth - 1) * 255).astype(np.uint8)
    if depth == 12:
        shades = to_eight_bits(stored, SPEC.deep_grey)
    want = picture(Image.fromarray(255 - shades if white_is_zero else shades))
    content = grey_tiff(
        packed,
        width=24,
        height=20,
        depth=depth,
        white_is_zero=white_is_zero,
        big_endian=big_endian,
        deflated=deflated,
    )
    got = preprocess(content, SPEC)
    assert (np.abs(got - want) <= 1).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_planar_tag_of_single_plane_is_ignored(dtype: str, layout: dict[str, Any]) -> None:
    """With one sample per pixel, planar and interleaved are the same."""
    stored = samples(1, dtype, high=255)
    plain = preprocess(tiff(stored, **{**layout, "planar": False}), SPEC)
    assert (preprocess(tiff(stored, **layout, tags={PLANAR: 2}), SPEC) == plain).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_plane_with_alpha_plane_is_composited_on_white(bits: int) -> None:
    """Planes of grey and alpha give the result of an interleaved picture."""
    stored = samples(2, f"u{bits // 8}", high=2**bits - 1)
    upper = (stored >> (bits - 8)).astype(np.uint8)
    want = picture(Image.merge("LA", [Image.fromarray(upper[..., band]) for band in range(2)]))
    got = preprocess(tiff(stored, BLACK_IS_ZERO, planar=True, tags={EXTRA: 2}), SPEC)
    assert (np.abs(got - want) <= 1).all()


@pytest.mark.parametrize("layout", ONE_PLANE, ids=named)
def test_palette_is_applied(layout: dict[str, Any]) -> None:
    """Palette entries of 16 bits give their upper 8 bits."""
    index = samples(1, "u1")
    ramp = np.arange(256) * 257
    palette = (*ramp.tolist(), *[0] * 256, *ramp[::-1].tolist())
    want = picture(Image.fromarray(np.stack([index, 0 * index, 255 - index], axis=2)))
    got = preprocess(tiff(index, PALETTE_COLOUR, tags={PALETTE: palette}, **layout), SPEC)
    assert (got == want).all()


def test_lab_is_converted_to_rgb() -> None:
    """CIE L*a*b* has signed a and b."""
    lab = np.broadcast_to(np.array([117, 70, 49], np.uint8), (20, 24, 3))
    got = preprocess(tiff(lab, 8), SPEC).reshape(-1, 3)
    assert (np.abs(got.astype(int) - (214, 12, 31)) <= 3).all()


@pytest.mark.parametrize("big_endian", [False, True])
def test_bigtiff_is_decoded(big_endian: bool) -> None:
    """The variant for files over 4 GB, in either byte order, gives the same pixels."""
    stored = samples(3, "u1")
    got = preprocess(tiff(stored, RGB, bigtiff=True, big_endian=big_endian), SPEC)
    assert (got == picture(Image.fromarray(stored))).all()


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_tiles_of_16_bits_are_assembled(orientation: int, deflated: bool, planar: bool) -> None:
    """Tiles that exceed the edges, planar or interleaved, give an upright picture."""
    stored = samples(3, "u2", high=65_535)
    padded = np.zeros((32, 32, 3), "<u2")
    padded[:20, :24] = stored
    tiles = padded.reshape(2, 16, 2, 16, 3).transpose(0, 2, 1, 3, 4).reshape(4, 16, 16, 3)
    parts = [tiles[..., band] for band in range(3)] if planar else [tiles]
    content = tiff_of(
        [tile.tobytes() for part in parts for tile in part],
        {WIDTH: 24, HEIGHT: 20, BITS: (16,) * 3, PHOTOMETRIC: RGB, SAMPLES: 3, 274: orientation,
         TILE_WIDTH: 16, TILE_HEIGHT: 16, PLANAR: 2 if planar else 1},
        deflated=deflated,
    )  # fmt: skip
    for strips, tile in ((273, 324), (279, 325)):
        content = content.replace(struct.pack("<HH", strips, 3), struct.pack("<HH", tile, 3))
        content = content.replace(struct.pack("<HH", strips, 4), struct.pack("<HH", tile, 4))
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}.get(orientation)
    image = Image.fromarray((stored >> 8).astype(np.uint8))
    want = picture(image if turn is None else image.transpose(turn))
    assert (np.abs(preprocess(content, SPEC) - want) <= 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(samples(1, "f4")), "floating-point samples"),
        (tiff(samples(3, "f4"), RGB, planar=True), "floating-point samples"),
        (tiff(samples(3, "i2"), RGB), "16, 16, 16 bits, photometric interpretation 2"),
        (tiff(samples(3, "i2"), RGB, planar=True), "16, 16, 16 bits, in planes"),
        (tiff(samples(3, "u4"), RGB), "32, 32, 32 bits"),
        (tiff(samples(3, "u1"), 8, planar=True), "in planes, photometric interpretation 8"),
        (tiff(samples(3, "u1"), YCBCR, planar=True), "in planes, photometric interpretation 6"),
        (tiff(samples(3, "u1"), YCBCR), "uncompressed, subsampled YCbCr"),
        (tiff(samples(2, "u2"), tags={EXTRA: 2}), "16, 16 bits"),
        (tiff(samples(1, "u2"), PALETTE_COLOUR, tags={PALETTE: 9}), "16 bits, photometric"),
        (grey_tiff(bytes(900), width=24, height=20, depth=14), "samples of 14 bits"),
        *[(tiff(samples(1, "u1"), tags={COMPRESSION: fax}), "fax") for fax in (2, 3, 4, 32771)],
        (tiff(samples(1, "u1"), tags={COMPRESSION: 34712}), "compression is 34712"),
    ],
)
def test_unsupported_samples_are_refused_by_name(content: bytes, message: str) -> None:
    """The error names kinds of samples that would be decoded incorrectly."""
    with pytest.raises(ImageError, match=message):
        preprocess(content, SPEC)


def test_undefined_sample_format_is_unsigned() -> None:
    """Sample format 4 (undefined) is decoded like 1 (unsigned)."""
    stored = samples(1, "u1")
    assert (
        preprocess(tiff(stored, tags={FORMAT: 4}), SPEC) == preprocess(tiff(stored), SPEC)
    ).all()


@pytest.mark.parametrize(
    "content",
    [
        tiff_of([bytes(8)], {WIDTH: 8, HEIGHT: 8, BITS: 8, PHOTOMETRIC: 1, TILE_WIDTH: 30_000,
                             TILE_HEIGHT: 30_000}, deflated=True),
        tiff_of([b"\0"] * (tiff_directory.MOST_STRIPS + 1),
                {WIDTH: 1, HEIGHT: 100_000, BITS: 8, PHOTOMETRIC: 1, ROWS: 1}),
        tiff_of([bytes(48_000_000)], {WIDTH: 16, HEIGHT: 29 * 16, BITS: 8, PHOTOMETRIC: 1,
                                      TILE_WIDTH: 3_000_000, TILE_HEIGHT: 16, 324: (8,) * 29,
                                      325: (46_671,) * 29}, deflated=True),
        tiff(samples(1, "u1"), tags={PALETTE: (0,) * 600_000}),
    ],
    ids=["tiles", "strips", "overhang", "palette"],
)  # fmt: skip
def test_oversized_tiles_strips_and_tags_are_refused(content: bytes) -> None:
    """Tiles much larger than the picture and a hundred thousand strips are refused fast."""
    start = time.process_time()
    with pytest.raises(ImageError):
        preprocess(content, SPEC)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("planar", [False, True])
def test_missing_strips_are_refused(planar: bool) -> None:
    """A file with fewer strips than its size needs is damaged, instead of partly black."""
    content = tiff(samples(3, "u1"), RGB, planar=planar, rows=10)
    rows = struct.pack("<HHII", ROWS, 3, 1, 10)
    assert preprocess(content, SPEC).any()
    with pytest.raises(ImageError, match=f"damaged: it has {6 if planar else 2} of"):
        preprocess(content.replace(rows, struct.pack("<HHII", ROWS, 3, 1, 5)), SPEC)


def test_tags_without_values_are_ignored() -> None:
    """A tag with a count of 0 counts as missing."""
    content = tiff(samples(1, "u1"), tags={EXTRA: 7})
    at = content.index(struct.pack("<HHI", EXTRA, 3, 1))
    empty = content[: at + 4] + bytes(4) + content[at + 8 :]
    assert (preprocess(empty, SPEC) == preprocess(tiff(samples(1, "u1")), SPEC)).all()


@pytest.mark.slow
def test_unrelated_tags_are_not_read() -> None:
    """A thousand unknown tags that each refer to the whole file take no time."""
    plain = tiff(samples(1, "u1"))
    many = tiff(samples(1, "u1"), tags=dict.fromkeys(range(40_000, 41_000), (1,) * 5_000))
    start = time.process_time()
    assert (preprocess(many, SPEC) == preprocess(plain, SPEC)).all()
    assert time.process_time() - start < 0.5
