"""Unreadable files, images that decoders get wrong, and decompression bombs."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from support.dicoms import dicom
from support.heifs import assembled, coded, heic
from support.pictures import encode

KINDS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF", "JPEG2000", "PPM",
)  # fmt: skip
"""The formats that Topwork reads except DICOM, by their names in ``encode``."""

EXACT: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
"""Options with which a lossy format changes colours least."""

STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Transposition of the upright image that a camera stores, by EXIF orientation."""


def gradient(width: int, height: int) -> Image.Image:
    """Return a picture whose red rises to the right and whose green rises to the bottom."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Return a picture of one colour."""
    return Image.new("RGB", size, colour)


def turned(upright: Image.Image, orientation: int, kind: str) -> bytes:
    """Return the file of a camera held in ``orientation``: turned pixels and the EXIF tag."""
    transpose = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if transpose is None else upright.transpose(transpose)
    if kind == "HEIF":
        return heic(stored, orientation)
    return encode(stored, kind, exif=exif, **EXACT.get(kind, {}))


def without_palette() -> bytes:
    """Return a PNG of palette indices that has no palette: Pillow raises AssertionError for it."""
    content = encode(plain((1, 2, 3)).quantize(2))
    start = content.index(b"PLTE") - 4
    return content[:start] + content[start + 12 + int.from_bytes(content[start : start + 4]) :]


def unreadable() -> dict[str, bytes]:
    """Return files that no decoder can read, by their defect."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    half = {kind: (whole := encode(noise, kind))[: len(whole) // 2] for kind in KINDS}
    png = bytearray(encode(noise))
    png[len(png) // 2] ^= 0xFF
    return {
        "empty": b"",
        "text": b"these are no pixels\n" * 20,
        "PDF": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "HTML": b"<!doctype html><html><body>404 Not Found</body></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "a JPEG's first bytes": b"\xff\xd8\xff",
        "a corrupt PNG": bytes(png),
        "a PNG without its palette": without_palette(),
        "half a DICOM": (whole := dicom(np.zeros((20, 20), np.uint8)))[: len(whole) - 200],
        **{f"half a {kind}": content for kind, content in half.items()},
    }


def bombs(width: int, height: int) -> dict[str, bytes]:
    """Return small files that claim to be ``width`` x ``height`` pixels, by format."""
    small = plain((1, 2, 3))
    other = plain((9, 8, 7))

    jpeg = bytearray(encode(small, "JPEG"))
    frame = jpeg.index(b"\xff\xc0\x00\x11\x08")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    gif = bytearray(encode(small, "GIF"))
    gif[6:10] = struct.pack("<HH", width, height)
    bmp = bytearray(encode(small, "BMP"))
    bmp[18:26] = struct.pack("<ii", width, height)
    webp = bytearray(encode(small, "WEBP", save_all=True, append_images=[other]))
    canvas = webp.index(b"VP8X") + 12
    webp[canvas : canvas + 3] = (width - 1).to_bytes(3, "little")
    webp[canvas + 3 : canvas + 6] = (height - 1).to_bytes(3, "little")
    jpeg2000 = bytearray(encode(small, "JPEG2000", no_jp2=True))
    jpeg2000[8:16] = jpeg2000[24:32] = struct.pack(">II", width, height)
    media = {
        kind: assembled(
            [(name, item, [(b"ispe", struct.pack(">III", 0, width, height)), *properties])]
        )
        for kind in ("HEIF", "AVIF")
        for name, item, (*properties,) in [coded(encode(small, kind))]
    }
    return {
        **media,
        "JPEG2000": bytes(jpeg2000),
        "PPM": b"P5 %d %d 255\n" % (width, height),
        "JPEG": bytes(jpeg),
        "PNG": grey_png(b"", width=width, height=height, depth=1),
        "WEBP": bytes(webp),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "TIFF": grey_tiff(b"\0" * 16, width=width, height=height, depth=8),
    }


def grey_png(samples: bytes, *, width: int, height: int, depth: int, extra: bytes = b"") -> bytes:
    """Return a greyscale PNG of packed samples, rows from the top; ``extra`` are chunks."""
    stride = len(samples) // height
    rows = b"".join(
        b"\0" + samples[row * stride :][:stride] for row in range(height if stride else 0)
    )
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            extra,
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
    )


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def grey_tiff(
    samples: bytes,
    *,
    width: int,
    height: int,
    depth: int,
    big_endian: bool = False,
    white_is_zero: bool = False,
    signed: bool = False,
    deflated: bool = False,
) -> bytes:
    """Return a greyscale TIFF of packed samples, rows from the top."""
    order = ">" if big_endian else "<"
    if deflated:
        samples = zlib.compress(samples)
    longs = {256: width, 257: height, 273: 0, 278: height, 279: len(samples)}
    shorts = {258: depth, 259: 8 if deflated else 1, 262: 0 if white_is_zero else 1, 277: 1}
    if signed:
        shorts[339] = 2
    start = 8 + 2 + 12 * (len(longs) + len(shorts)) + 4
    longs[273] = start
    entries = [
        struct.pack(order + "HHII", tag, 4, 1, longs[tag])
        if tag in longs
        else struct.pack(order + "HHIHH", tag, 3, 1, shorts[tag], 0)
        for tag in sorted({*longs, *shorts})
    ]
    return b"".join(
        [
            b"MM\0*" if big_endian else b"II*\0",
            struct.pack(order + "IH", 8, len(entries)),
            *entries,
            struct.pack(order + "I", 0),
            samples,
        ]
    )
