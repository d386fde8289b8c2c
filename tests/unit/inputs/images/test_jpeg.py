"""JPEG: limits on scans and segments, in plain, multi-picture and TIFF files."""

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
    """Return a JPEG with ``count`` additional scans that do not change the picture."""
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
    """A file with 3,000 scans of 0.36 megapixels is refused at once in every container."""
    content = wrap(scans(3_000))
    start = time.process_time()
    with pytest.raises(ImageError, match="scans of") as caught:
        preprocess(content, SPEC, limits=LIMITS)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert time.process_time() - start < 0.5
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (SIDE, SIDE)


def after_tables(content: bytes) -> bytes:
    """Return a JPEG preceded by a tables-only stream (T.81, B.5)."""
    at = content.index(b"\xff\xdb")
    end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
    return content[:2] + content[at:end] + b"\xff\xd9" + content


def after_marker(content: bytes) -> bytes:
    """Return a JPEG whose second and later scans follow a marker that libjpeg skips.

    libjpeg skips it while it expects a restart marker.
    """
    first, *others = content.split(b"\xff\xda")
    start, frame = first.split(b"\xff\xc2", 1)
    tables = b"".join(re.findall(rb"\xff\xc4.*?(?=\xff)", content, re.DOTALL))
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 1)
    hidden = b"\xff\xda".join([b"\xff\x02\xff\xff", *others[1:]])
    return b"".join((start, b"\xff\xdd\0\4\0\1\xff\xc2", frame, tables, scan, hidden, b"\xff\xd9"))


@pytest.mark.parametrize("wrap", [after_tables, after_marker])
def test_hidden_scans_are_counted(wrap: Callable[[bytes], bytes]) -> None:
    """All scans count that libjpeg finds in damaged or unusual files."""
    assert preprocess(wrap(scans(20)), SPEC, limits=LIMITS).shape == (16, 16, 3)
    with pytest.raises(ImageError, match="scans of") as caught:
        preprocess(wrap(scans(3_000)), SPEC, limits=LIMITS)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("wrap", [bytes, multi_picture, in_tiff], ids=["plain", "MPO", "TIFF"])
def test_scans_within_limit_are_decoded(wrap: Callable[[bytes], bytes]) -> None:
    """A progressive file with few scans is decoded."""
    assert (preprocess(wrap(scans(20)), SPEC, limits=LIMITS) == 100).all()


def test_scans_of_further_pictures_are_not_counted() -> None:
    """Only the first picture of a multi-picture file is decoded, so only its scans count."""
    first = encode(gradient(640, 480), "JPEG", quality=95)
    content = multi_picture(first, *[scans(2_000)] * 3)
    assert content.count(b"\xff\xda") > 6_000
    assert (preprocess(content, SPEC, limits=LIMITS) == preprocess(first, SPEC)).all()


def test_scan_markers_in_metadata_are_not_counted() -> None:
    """The content of segments, such as a thumbnail, does not count."""
    first = encode(gradient(640, 480), "JPEG")
    segment = b"\xff\xe3" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000
    content = first[:2] + segment + first[2:]
    assert (preprocess(content, SPEC, limits=LIMITS) == preprocess(first, SPEC)).all()


def test_many_scans_of_a_small_picture_are_refused() -> None:
    """A scan counts for a least number of pixels."""
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
    """Pillow would create a Python object for each of these header parts."""
    content = encode(plain((1, 2, 3)), "JPEG")
    with pytest.raises(ImageError, match="segment"):
        preprocess(content[:2] + flood + content[2:], SPEC)


def test_segments_within_limit_are_decoded() -> None:
    """Large profiles and XMP packets have many segments."""
    content = encode(gradient(36, 24), "JPEG")
    many = content[:2] + b"\xff\xe5\0\3a" * (jpeg.MOST_SEGMENTS - 100) + content[2:]
    assert (preprocess(many, SPEC) == preprocess(content, SPEC)).all()


def test_multi_picture_file_with_damaged_index_is_decoded() -> None:
    """The index is ignored."""
    first = encode(gradient(36, 24), "JPEG")
    content = multi_picture(first).replace(b"MPF\0II*\0", b"MPF\0II*\xff")
    assert (preprocess(content, SPEC) == preprocess(first, SPEC)).all()


def test_multi_picture_cmyk_gives_the_first_picture() -> None:
    """A CMYK multi-picture file has the colours of its first picture."""
    first = encode(plain((220, 10, 20)).convert("CMYK"), "JPEG", quality=100)
    both = preprocess(multi_picture(first, first), SPEC)
    assert (both == preprocess(first, SPEC)).all()
    assert np.ptp(both) > 150
