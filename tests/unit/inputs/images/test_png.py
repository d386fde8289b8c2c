"""PNG: damaged ancillary chunks are ignored and damaged critical chunks refused, as in libpng."""

from __future__ import annotations

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from support.bad_images import gradient, plain, png_chunk
from support.pictures import encode

from topwork.errors import ImageError
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec

SPEC = PreprocessSpec(resize=20, crop=16)
CONTENT = encode(gradient(36, 24))
PICTURE = preprocess(CONTENT, SPEC)
BEFORE = CONTENT.index(b"IDAT") - 4
AFTER = CONTENT.index(b"IEND") - 4

ANCILLARY = {
    b"tEXt": b"Comment\0damaged",
    b"zTXt": b"Comment\0\0" + zlib.compress(b"damaged"),
    b"iTXt": b"Comment\0\0\0\0\0damaged",
    b"iCCP": b"icc\0\0" + zlib.compress(bytes(200)),
    b"pHYs": struct.pack(">IIB", 2_835, 2_835, 1),
    b"gAMA": struct.pack(">I", 45_455),
    b"cHRM": bytes(32),
    b"sRGB": b"\0",
    b"sBIT": b"\x08\x08\x08",
    b"bKGD": bytes(6),
    b"hIST": bytes(8),
    b"tIME": bytes(7),
    b"eXIf": b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0),
    b"tRNS": struct.pack(">HHH", 0, 0, 0),
    b"acTL": struct.pack(">II", 2, 0),
    b"fcTL": struct.pack(">IIIIIHHBB", 0, 36, 24, 0, 0, 1, 10, 0, 0),
    b"fdAT": struct.pack(">I", 1) + bytes(20),
    b"prIv": b"private",
}


def inserted(chunk: bytes, at: int = BEFORE) -> bytes:
    """Return the PNG with an additional chunk."""
    return CONTENT[:at] + chunk + CONTENT[at:]


def with_wrong_checksum(chunk: bytes) -> bytes:
    """Return a chunk with a wrong checksum."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


@pytest.mark.parametrize("at", [BEFORE, AFTER], ids=["before", "after"])
@pytest.mark.parametrize("name", ANCILLARY, ids=lambda name: name.decode())
def test_ancillary_chunk_with_wrong_checksum_is_ignored(name: bytes, at: int) -> None:
    """The result is that of the file without the chunk: not rotated, not transparent."""
    content = inserted(with_wrong_checksum(png_chunk(name, ANCILLARY[name])), at)
    assert (preprocess(content, SPEC) == PICTURE).all()


@pytest.mark.parametrize("at", [BEFORE, AFTER], ids=["before", "after"])
@pytest.mark.parametrize("body", [b"", b"\0", b"x", b"Raw profile type exif\0\xff", bytes(70)])
@pytest.mark.parametrize("name", ANCILLARY, ids=lambda name: name.decode())
def test_ancillary_chunk_with_damaged_content_is_ignored(name: bytes, body: bytes, at: int) -> None:
    """The result is that of the file without the chunk."""
    assert (preprocess(inserted(png_chunk(name, body), at), SPEC) == PICTURE).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [b"Comment", b"Raw profile type exif", b"XML:com.adobe.xmp"], ids=lambda name: name[:3]
)
def test_compressed_metadata_is_never_inflated(name: bytes) -> None:
    """Text and profiles that unpack to 64 MiB take no time and do not affect the picture."""
    bomb = zlib.compress(bytes(64 * 2**20))
    chunks = png_chunk(b"zTXt", name + b"\0\0" + bomb) + png_chunk(b"iCCP", b"icc\0\0" + bomb)
    chunks += png_chunk(b"iTXt", name + b"\0\1\0\0\0" + bomb)
    start = time.process_time()
    assert (preprocess(inserted(chunks), SPEC) == PICTURE).all()
    assert time.process_time() - start < 0.1


def test_text_keywords_of_pillow_are_ignored() -> None:
    """A text chunk cannot override an entry of Pillow's ``info``."""
    names = (b"transparency", b"compression", b"interlace", b"bbox", b"gamma")
    chunks = b"".join(png_chunk(b"tEXt", name + b"\0group4") for name in names)
    assert (preprocess(inserted(chunks), SPEC) == PICTURE).all()


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"], ids=lambda name: name.decode())
def test_critical_chunk_with_wrong_checksum_is_refused(name: bytes) -> None:
    """Header and pixels need a valid checksum."""
    at = CONTENT.index(name)
    end = at + 8 + int.from_bytes(CONTENT[at - 4 : at])
    content = CONTENT[: end - 1] + bytes([CONTENT[end - 1] ^ 1]) + CONTENT[end:]
    with pytest.raises(ImageError, match=f"PNG is damaged: the checksum of {name.decode()}"):
        preprocess(content, SPEC)


def test_damaged_or_missing_palette_is_refused() -> None:
    """A palette picture needs a palette with a valid checksum."""
    content = encode(gradient(36, 24).quantize(16))
    at = content.index(b"PLTE")
    end = at + 8 + int.from_bytes(content[at - 4 : at])
    with pytest.raises(ImageError, match="PNG is damaged: it has no palette"):
        preprocess(content[: at - 4] + content[end:], SPEC)
    content = content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:]
    with pytest.raises(ImageError, match="checksum of PLTE"):
        preprocess(content, SPEC)


def test_file_cut_off_in_pixels_is_refused() -> None:
    """A PNG that ends after its pixels, without IEND, is decoded."""
    with pytest.raises(ImageError, match="PNG is cut off in its chunk IDAT"):
        preprocess(CONTENT[: AFTER - 10], SPEC)
    assert (preprocess(CONTENT[:AFTER], SPEC) == PICTURE).all()
    assert (preprocess(CONTENT[: AFTER + 5], SPEC) == PICTURE).all()


@pytest.mark.parametrize("kind", ["eXIf", "Raw profile", "XMP"])
def test_orientation_is_applied(kind: str) -> None:
    """The orientation may be in an eXIf chunk or in older text chunks."""
    exif = ANCILLARY[b"eXIf"]
    chunk = {
        "eXIf": png_chunk(b"eXIf", exif),
        "Raw profile": png_chunk(
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(b"\nexif\n      32\n" + (b"Exif\0\0" + exif).hex().encode() + b"\n"),
        ),
        "XMP": png_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    }[kind]
    want = preprocess(encode(gradient(36, 24).transpose(Image.Transpose.ROTATE_270)), SPEC)
    for at in (BEFORE, AFTER):
        assert (np.abs(preprocess(inserted(chunk, at), SPEC).astype(int) - want) <= 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flood", [png_chunk(b"prIv", b""), png_chunk(b"IDAT", b"")], ids=["private", "pixels"]
)
def test_chunk_floods_are_refused(flood: bytes) -> None:
    """Too many chunks are refused fast."""
    start = time.process_time()
    with pytest.raises(ImageError, match="over 100000 chunks"):
        preprocess(inserted(flood * 200_000), SPEC)
    assert time.process_time() - start < 2


def test_transparency_of_wrong_length_is_ignored() -> None:
    """As in libpng, a tRNS chunk with more entries than the palette is ignored."""
    image = plain((220, 10, 20)).quantize(2)
    content = encode(image)
    at = content.index(b"IDAT") - 4
    long = content[:at] + png_chunk(b"tRNS", bytes(200)) + content[at:]
    assert (preprocess(long, SPEC) == preprocess(content, SPEC)).all()


def test_transparency_with_alpha_channel_is_ignored() -> None:
    """A picture with an alpha channel may not have a tRNS chunk."""
    content = encode(Image.new("LA", (24, 20), (100, 128)))
    at = content.index(b"IDAT") - 4
    odd = content[:at] + png_chunk(b"tRNS", bytes(2)) + content[at:]
    assert (preprocess(odd, SPEC) == preprocess(content, SPEC)).all()
