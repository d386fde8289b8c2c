"""JPEG 2000, Netpbm, GIF, BMP and WebP: decoding, and refusal of excessive decoding costs."""

from __future__ import annotations

import functools
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.bad_images import gradient, plain
from support.pictures import encode

from topwork.errors import ImageError
from topwork.inputs.image import preprocess
from topwork.inputs.images import jpeg2000
from topwork.inputs.images.isobmff import box
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

SPEC = PreprocessSpec(resize=20, crop=16, deep_grey="percentiles")
IMAGE = gradient(40, 32)
PICTURE = preprocess(encode(IMAGE), SPEC)


# JPEG 2000


@pytest.mark.parametrize("codestream", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_jpeg_2000_is_decoded(mode: str, codestream: bool) -> None:
    """Container or bare codestream, grey or colour, with or without alpha."""
    image = IMAGE.convert(mode)
    want = preprocess(encode(image), SPEC).astype(int)
    got = preprocess(encode(image, "JPEG2000", no_jp2=codestream), SPEC)
    assert np.abs(got - want).max() <= 1


@functools.cache
def one_colour(side: int) -> bytes:
    """Return an image of one colour as JPEG 2000."""
    return encode(plain((1, 2, 3), (side, side)), "JPEG2000", no_jp2=True)


def patched(offset: int, value: bytes, *, side: int = 2_000) -> bytes:
    """Return a codestream with other bytes in its coding style."""
    content = one_colour(side)
    at = content.index(b"\xff\x52") + offset
    return content[:at] + value + content[at + len(value) :]


def precincts(size: int) -> bytes:
    """Return a codestream of precincts of 2 to the power of ``size``."""
    content = patched(4, b"\1")
    at = content.index(b"\xff\x52")
    levels = content[at + 9]
    sizes = bytes([size | size << 4]) * (levels + 1)
    return b"".join(
        (content[: at + 2], struct.pack(">H", 12 + len(sizes)), content[at + 4 : at + 14],
         sizes, content[at + 14 :])
    )  # fmt: skip


def tiled(side: int) -> bytes:
    """Return a codestream whose header has tiles of ``side`` x ``side`` pixels."""
    content = patched(0, b"")
    return content[:24] + struct.pack(">II", side, side) + content[32:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: precincts(1), "precincts"),
        (lambda: patched(10, b"\0\0", side=2_500), "code-blocks"),
        (lambda: tiled(8), "62500 tiles"),
        (lambda: precincts(7)[:-2] + b"\xff\x64\0\2" * 20_000, "damaged|marker segments"),
        (lambda: one_colour(8)[:2] + b"\xff\x64\0\2" * 20_000, "JPEG 2000"),
    ],
    ids=["precincts", "code-blocks", "tiles", "trailing comments", "comments"],
)
@pytest.mark.timeout(30)
def test_jpeg_2000_with_too_many_parts_is_refused(
    content: Callable[[], bytes], message: str
) -> None:
    """A few hundred bytes whose structures take gigabytes are refused at once."""
    hostile = content()
    start = time.process_time()
    with pytest.raises(ImageError, match=message):
        preprocess(hostile, SPEC)
    assert time.process_time() - start < 1


def test_jpeg_2000_with_too_many_packets_is_refused() -> None:
    """65,535 layers of many precincts are too many packets."""
    content = precincts(5)
    at = content.index(b"\xff\x52") + 6
    with pytest.raises(ImageError, match="precincts of 65535 layers"):
        preprocess(content[:at] + b"\xff\xff" + content[at + 2 :], SPEC)


def passes(width: int, height: int, components: int = 3) -> bytes:
    """Return a codestream without wavelet transform, of blocks with 30 passes and no data."""
    blocks = components * -(-width // 64) * -(-height // 64)
    size = struct.pack(">HHIIIIIIIIH", 38 + 3 * components, 0, width, height, 0, 0, width, height,
                       0, 0, components) + bytes([7, 1, 1]) * components  # fmt: skip
    style = struct.pack(">HBBHBBBBBBB", 13, 1, 0, 1, 0, 0, 4, 4, 0, 1, 0x66)
    # Included at once, no empty bit planes, 30 passes in 2 bytes: 1 1 1 1111 11000 0 0000010.
    packets = bytes([0b11111111, 0b01100000, 0b00001000, 0x55, 0x55]) * blocks
    tile = struct.pack(">HHIBB", 10, 0, 14 + len(packets), 0, 1)
    return b"".join(
        (b"\xff\x4f\xff\x51", size, b"\xff\x52", style, b"\xff\x5c\0\4\x40\x50\xff\x90",
         tile, b"\xff\x93", packets, b"\xff\xd9")
    )  # fmt: skip


@pytest.mark.parametrize(
    "options", [{"offset": (3, 5), "tile_size": (256, 256)}, {"tile_size": (99, 99)}]
)
def test_large_jpeg_2000_without_lower_resolution_is_refused(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow loses tiles between the pixels of a lower resolution, so none is used."""
    content = encode(gradient(401, 303), "JPEG2000", **options)
    assert preprocess(content, SPEC).shape == (16, 16, 3)
    monkeypatch.setattr(jpeg2000, "MOST_SAMPLES", 100_000)
    with pytest.raises(ImageError, match="samples to decode"):
        preprocess(content, SPEC)


def test_jpeg_2000_with_many_passes_is_refused() -> None:
    """Two bytes cause 30 passes over 4,096 samples, so decoded samples are limited."""
    assert preprocess(passes(512, 512), SPEC).shape == (16, 16, 3)
    start = time.process_time()
    with pytest.raises(ImageError, match="12000000 samples to decode") as caught:
        preprocess(passes(2_000, 2_000), SPEC)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("codestream", [False, True])
@pytest.mark.parametrize("options", [{}, {"tile_size": (200, 120)}])
@pytest.mark.parametrize("size", [(401, 303), (400, 302), (397, 301)])
def test_large_jpeg_2000_is_decoded_at_a_lower_resolution(
    size: tuple[int, int], options: Any, codestream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is nearly the same at every reduction and for any divisibility of the size."""
    image = gradient(*size)
    for mode in ("RGB", "RGBA"):
        content = encode(image.convert(mode), "JPEG2000", no_jp2=codestream, **options)
        want = preprocess(encode(image), SPEC).astype(int)
        for reduction in range(4):
            most = 4 * (size[0] >> reduction) * (size[1] >> reduction) + 2_000
            monkeypatch.setattr(jpeg2000, "MOST_SAMPLES", most)
            assert np.abs(preprocess(content, SPEC) - want).max() <= 6


def test_jpeg_2000_size_of_codestream_is_checked() -> None:
    """A container that claims fewer pixels than its codestream does not hide them."""
    content = encode(plain((1, 2, 3), (700, 700)), "JPEG2000")
    header = content.index(b"ihdr") + 4
    lie = content[:header] + struct.pack(">II", 8, 8) + content[header + 8 :]
    with pytest.raises(ImageError, match="700 x 700 = 490000 pixels"):
        preprocess(lie, SPEC, limits=InputLimits(max_image_pixels=100_000))


def test_first_of_two_jpeg_2000_codestreams_is_checked() -> None:
    """The check and the decoder use the same codestream."""
    good, hostile = encode(plain((1, 2, 3)), "JPEG2000"), precincts(1)
    at = good.index(b"jp2c") - 4
    content = good[:at] + box(b"jp2c", hostile) + good[at:]
    with pytest.raises(ImageError, match="precincts"):
        preprocess(content, SPEC)


# Netpbm


def plain_text(samples: np.ndarray, kind: bytes, maximum: bytes = b"") -> bytes:
    """Return a plain Netpbm file with comments in header and samples."""
    height, width = samples.shape[:2]
    text = b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in samples)
    head = b"P%s # a comment\n# 7 7\n%d %d\n%s\n" % (kind, width, height, maximum)
    return head + text.replace(b"\n", b" # 9\n", 1)


RGB = np.asarray(IMAGE)
GREY = np.asarray(IMAGE.convert("L"))
BITS = GREY > 90
NETPBM = {
    "P1": (plain_text((~BITS).astype(int), b"1"), Image.fromarray(BITS)),
    "P1 without spaces": (
        b"P1 40 32\n" + b"".join(b"%d" % value for value in (~BITS).ravel().astype(int)),
        Image.fromarray(BITS),
    ),
    "P2": (plain_text(GREY, b"2", b"255"), Image.fromarray(GREY)),
    "P3": (plain_text(RGB, b"3", b"255"), IMAGE),
    "P4": (b"P4\n40 32\n" + np.packbits(~BITS, axis=1).tobytes(), Image.fromarray(BITS)),
    "P5": (encode(Image.fromarray(GREY), "PPM"), Image.fromarray(GREY)),
    "P6": (encode(IMAGE, "PPM"), IMAGE),
    "P6 of 16 bits": (b"P6 40 32 65535 " + (RGB.astype(">u2") * 257).tobytes(), IMAGE),
    "P5 up to 100": (
        b"P5 40 32 100\n" + (GREY // 3).tobytes(),
        Image.fromarray(np.rint(GREY // 3 * 2.55).astype(np.uint8)),
    ),
}


@pytest.mark.parametrize("kind", NETPBM)
def test_netpbm_is_decoded(kind: str) -> None:
    """Bitmaps, greymaps and pixmaps, plain and raw, with any largest sample."""
    content, image = NETPBM[kind]
    assert (preprocess(content, SPEC) == preprocess(encode(image), SPEC)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5\n", "no size"),
        (b"P5 44", "no size"),
        (b"P5 4 4", "largest sample"),
        (b"P5 4 4 0\n" + bytes(16), "largest sample is 0"),
        (b"P5 4 4 65536\n" + bytes(32), "largest sample is 65536"),
        (b"P5 4 4 255\n" + bytes(15), "cut off: it has 15 of 16"),
        (b"P5 4 4 256\n" + bytes(31), "cut off: it has 31 of 32"),
        (b"P4 9 4\n" + bytes(7), "cut off: it has 7 of 8"),
        (b"P1 2 2\n0 1 2 0", "other digits"),
        (b"P2 2 2 9\n1 2 3", "PNM"),
        (b"P2 2 2 9\n1 2 3 10", "not within 0 to 9"),
        (b"P2 2 2 9\n1 2 3 -1", "not within 0 to 9"),
        (b"P2 2 2 9\n1 2 x 3", "PNM"),
        (b"P3 2 1 9\n1 2 3 4 5 99999999999999999999", "PNM"),
    ],
)
def test_damaged_netpbm_is_an_image_error(content: bytes, message: str) -> None:
    """The error says which part is missing or invalid."""
    with pytest.raises(ImageError, match=message):
        preprocess(content, SPEC)


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", [b"P3 1000 1500 255\n", b"P2 2000 2000 65535\n", b"P1 3000 2000\n"]
)
def test_plain_netpbm_is_decoded_fast(head: bytes) -> None:
    """Millions of decimal numbers are not parsed in a Python loop."""
    content = head + b"1 " * 6_000_000
    start = time.process_time()
    preprocess(content, SPEC)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5" + b" " * 16_000_000 + b"2 2 255 1234", "header"),
        (b"P5" + b"#\n" * 8_000_000 + b"2 2 255 1234", "header"),
        (b"P5 2 2" + b" " * 16_000_000 + b"255 1234", "header"),
        (b"P1 2000 2000\n" + b"#\n0 " * 4_000_000, "comments"),
        (b"P2 2000 2000 1\n" + b"#\n0 " * 4_000_000, "comments"),
    ],
    ids=["spaces", "comments", "more spaces", "bits", "samples"],
)
def test_netpbm_floods_are_refused(content: bytes, message: str) -> None:
    """Parsing millions of spaces or comments would take 2.5 GB of memory."""
    start = time.process_time()
    with pytest.raises(ImageError, match=message):
        preprocess(content, SPEC)
    assert time.process_time() - start < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"P1 3000 2000\n" + b"00 " * 5_000_000, b"P4 10000 5000\n" + bytes(6_250_000)]
)
def test_bitmap_decoding_takes_little_memory(content: bytes) -> None:
    """The peak is little above one byte per pixel."""
    tracemalloc.start()
    preprocess(content, SPEC)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 130_000_000


# GIF, BMP, WebP


@pytest.mark.parametrize(
    "flood", [b"!\xfe" + b"\1a" * 200_000 + b"\0", b"!\xff\1a\0" * 200_000, b"\0" * 200_000]
)
def test_gif_with_too_many_blocks_is_refused(flood: bytes) -> None:
    """Many tiny comments or other blocks are refused before Pillow reads them."""
    content = encode(IMAGE.quantize(4), "GIF")
    at = 13 + 3 * 4
    start = time.process_time()
    with pytest.raises(ImageError, match="over 100000 blocks"):
        preprocess(content[:at] + flood + content[at:], SPEC)
    assert time.process_time() - start < 0.5


def test_gif_frame_larger_than_its_screen_is_refused() -> None:
    """The larger of screen and frame counts against the limit of pixels."""
    content = bytearray(encode(plain((1, 2, 3)), "GIF"))
    at = content.index(b"\x2c", 13)
    content[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(ImageError, match="60000 x 60000"):
        preprocess(bytes(content), SPEC)


def rle(width: int, height: int, data: bytes) -> bytes:
    """Return a run-length encoded BMP of grey shades."""
    palette = b"".join(bytes([shade] * 3 + [0]) for shade in range(256))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


def test_run_length_encoded_bmp_is_decoded() -> None:
    """Each run gives pixels of its shade."""
    assert (preprocess(rle(20, 20, b"\x14\x50\0\0" * 20 + b"\0\1"), SPEC) == 0x50).all()


@pytest.mark.parametrize(
    "content", [rle(7_000, 7_000, b"\1\2" * 99), rle(100, 100, b"\0\2\0\0" * 400_000)]
)
def test_large_run_length_encoded_bmp_is_refused(content: bytes) -> None:
    """Pillow decodes run-length encoding in Python, so such files are limited to 1 s."""
    start = time.process_time()
    with pytest.raises(ImageError, match="run-length encoded") as caught:
        preprocess(content, SPEC)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"save_all": True}])
def test_webp_size_is_limited_before_it_is_opened(options: dict[str, bool]) -> None:
    """The size is read from each of WebP's three kinds of headers."""
    content = encode(plain((1, 2, 3), (300, 200)), "WEBP", **options)
    with pytest.raises(ImageError, match="300 x 200 = 60000 pixels; the limit is 59999"):
        preprocess(content, SPEC, limits=InputLimits(max_image_pixels=59_999))
