"""A JPEG's scans and segments are counted before it is decoded, wherever the JPEG is."""

from __future__ import annotations

import io
import re
import struct
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from support.bad_images import gradient, plain
from support.pictures import encode
from support.tiffs import BITS, COMPRESSION, HEIGHT, PHOTOMETRIC, SAMPLES, WIDTH, tiff_of

from topwork.errors import ImageError
from topwork.inputs.image import preprocess
from topwork.inputs.images import jpeg
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

SPEC = PreprocessSpec(resize=20, crop=16)
LIMITS = InputLimits(max_image_pixels=1_000_000)
SIDE = 600


def scans(count: int, side: int = SIDE) -> bytes:
    """Return a JPEG with ``count`` more scans, none of which changes the picture."""
    whole = encode(Image.new("L", (side, side), 100), "JPEG", progressive=True)
    # AC coefficients 1 to 63, their last bit: an end of band for all blocks.
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0x10) + b"\x00"
    return whole[:-2] + scan * count + whole[-2:]


def multi_picture(*pictures: bytes) -> bytes:
    """Return a multi-picture file (CIPA DC-007) of JPEGs."""
    first, *others = pictures
    entries, at = struct.pack("<IIIHH", 0x030000, len(first), 0, 0, 0), 0
    for other in others:
        entries += struct.pack("<IIIHH", 0, len(other), at, 0, 0)
        at += len(other)
    index = b"MPF\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 3)
    index += struct.pack("<HHI4s", 0xB000, 7, 4, b"0100")
    index += struct.pack("<HHII", 0xB001, 4, 1, len(pictures))
    index += struct.pack("<HHII", 0xB002, 7, len(entries), 50) + bytes(4) + entries
    segment = b"\xff\xe2" + struct.pack(">H", 2 + len(index)) + index
    return first[:2] + segment + first[2:] + b"".join(others)


def in_tiff(strip: bytes, side: int = SIDE) -> bytes:
    """Return a TIFF whose only strip is a JPEG."""
    tags = {WIDTH: side, HEIGHT: side, BITS: 8, PHOTOMETRIC: 1, SAMPLES: 1, COMPRESSION: 7}
    return tiff_of([strip], tags)


@pytest.mark.parametrize(
    "wrap",
    [bytes, multi_picture, lambda content: multi_picture(content, content), in_tiff],
    ids=["plain", "multi-picture of one", "multi-picture", "in a TIFF"],
)
def test_many_scans_are_refused_before_decoding(wrap: Callable[[bytes], bytes]) -> None:
    """A file with 3,000 scans of 0.36 megapixels is refused at once, whatever it calls itself."""
    content = wrap(scans(3_000))
    start = time.process_time()
    with pytest.raises(ImageError, match="scans of") as caught:
        preprocess(content, SPEC, limits=LIMITS)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert time.process_time() - start < 0.5
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (SIDE, SIDE)


def behind_tables(content: bytes) -> bytes:
    """Return a JPEG whose tables are in a file of their own before it (T.81, B.5)."""
    at = content.index(b"\xff\xdb")
    end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
    return content[:2] + content[at:end] + b"\xff\xd9" + content


def behind_marker(content: bytes) -> bytes:
    """Return a JPEG with its scans, but for the first, behind a marker that libjpeg passes over.

    It does so where it looks for a restart marker.
    """
    first, *others = content.split(b"\xff\xda")
    start, frame = first.split(b"\xff\xc2", 1)
    tables = b"".join(re.findall(rb"\xff\xc4.*?(?=\xff)", content, re.DOTALL))
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 1)
    hidden = b"\xff\xda".join([b"\xff\x02\xff\xff", *others[1:]])
    return b"".join((start, b"\xff\xdd\0\4\0\1\xff\xc2", frame, tables, scan, hidden, b"\xff\xd9"))


@pytest.mark.parametrize("wrap", [behind_tables, behind_marker])
def test_hidden_scans_are_counted(wrap: Callable[[bytes], bytes]) -> None:
    """Scans are counted wherever libjpeg finds them, which has its own way with damage."""
    assert preprocess(wrap(scans(20)), SPEC, limits=LIMITS).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="scans of") as caught:
        preprocess(wrap(scans(3_000)), SPEC, limits=LIMITS)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("wrap", [bytes, multi_picture, in_tiff], ids=["plain", "MPO", "TIFF"])
def test_scans_within_the_limit_are_read(wrap: Callable[[bytes], bytes]) -> None:
    """A progressive file, with scans within the limit, is a picture like any other."""
    assert (preprocess(wrap(scans(20)), SPEC, limits=LIMITS) == 100).all()


def test_scans_of_further_pictures_are_not_counted() -> None:
    """A phone's multi-picture file with previews of many scans has as many as its first picture."""
    first = encode(gradient(640, 480), "JPEG", quality=95)
    content = multi_picture(first, *[scans(2_000)] * 3)
    assert content.count(b"\xff\xda") > 6_000
    assert (preprocess(content, SPEC, limits=LIMITS) == preprocess(first, SPEC)).all()


def test_scan_markers_in_metadata_are_not_counted() -> None:
    """A thumbnail, or anything, in a segment is none of the picture's scans."""
    first = encode(gradient(640, 480), "JPEG")
    segment = b"\xff\xe3" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000
    content = first[:2] + segment + first[2:]
    assert (preprocess(content, SPEC, limits=LIMITS) == preprocess(first, SPEC)).all()


def test_many_scans_of_a_small_picture_are_refused() -> None:
    """However few its pixels, a picture has not a million scans."""
    with pytest.raises(ImageError, match="scans of 64 pixels"):
        preprocess(scans(200_000, side=8), SPEC)


@pytest.mark.parametrize(
    "flood",
    [
        b"\xff\xe5\0\2" * 100_000,
        b"\xff\xd8" * 100_000,
        b"\0" * 100_000,
        b"\xff" * 100_000,
        b"\xff\xdb" + struct.pack(">H", 65_002) + b"\0" * 65_000,
        b"\xff\xc0" + struct.pack(">H", 60_002) + b"\x08" * 60_000,
    ],
    ids=["segments", "markers", "zeros", "fill", "tables", "components"],
)
def test_header_floods_are_refused(flood: bytes) -> None:
    """Header parts of which Pillow would make a Python object each are refused before it does."""
    content = encode(plain((1, 2, 3)), "JPEG")
    with pytest.raises(ImageError, match="segment"):
        preprocess(content[:2] + flood + content[2:], SPEC)


def test_segments_within_the_limit_are_read() -> None:
    """As many segments as large profiles and packets have are no flood."""
    content = encode(gradient(36, 24), "JPEG")
    many = content[:2] + b"\xff\xe5\0\3a" * (jpeg.MOST_SEGMENTS - 100) + content[2:]
    assert (preprocess(many, SPEC) == preprocess(content, SPEC)).all()


def test_multi_picture_file_with_damaged_index_is_read() -> None:
    """The first picture is read as if there was no index."""
    first = encode(gradient(36, 24), "JPEG")
    content = multi_picture(first).replace(b"MPF\0II*\0", b"MPF\0II*\xff")
    assert (preprocess(content, SPEC) == preprocess(first, SPEC)).all()


def test_multi_picture_cmyk_gives_the_first_picture() -> None:
    """A multi-picture file of CMYK comes out in the first picture's colours."""
    first = encode(plain((220, 10, 20)).convert("CMYK"), "JPEG", quality=100)
    both = preprocess(multi_picture(first, first), SPEC)
    assert (both == preprocess(first, SPEC)).all()
    assert np.ptp(both) > 150
