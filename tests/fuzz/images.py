"""Fuzz targets of photos and DICOM files: pixels of the requested size, or ImageError."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image
from support.bad_images import gradient, grey_png, grey_tiff, turned, unreadable
from support.dicoms import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    RLE,
    Elements,
    dicom,
    rle_frame,
)
from support.heifs import deep_heic, grid
from support.pictures import encode
from support.tiffs import RGB, tiff

from topwork.errors import ImageError
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

SPEC = PreprocessSpec(resize=20, crop=16)
LIMITS = InputLimits(max_image_pixels=2**20)
"""Low limit of pixels, so that a search tries many pictures a second."""

# Decoders warn about damaged files.
warnings.filterwarnings("ignore")


def decode(content: bytes) -> None:
    """Decode any bytes."""
    try:
        pixels = preprocess(content, SPEC, limits=LIMITS)
    except ImageError:
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


def decode_dicom(content: bytes) -> None:
    """Decode any bytes after a DICOM file's preamble."""
    decode(bytes(128) + b"DICM" + content)


def photos() -> list[bytes]:
    """Return pictures of each format and many modes, and unreadable files."""
    small = gradient(24, 20)
    modes = [small.convert(mode) for mode in ("L", "LA", "RGBA", "P", "1")]
    frames = {"save_all": True, "append_images": [small.rotate(90)]}
    deep = np.arange(24 * 20, dtype=np.uint16).tobytes()
    return [
        *(turned(small, 6, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        *(encode(small, kind) for kind in ("GIF", "BMP", "PPM", "JPEG2000")),
        encode(small, "JPEG2000", no_jp2=True, tile_size=(16, 16)),
        b"P2 6 4 900 # a comment\n" + b" ".join(b"%d" % sample for sample in range(0, 888, 37)),
        *(encode(image, kind) for image in modes for kind in ("PNG", "TIFF")),
        *(encode(small, kind, **frames) for kind in ("GIF", "WEBP", "TIFF")),
        *(encode(small, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg")),
        encode(small.convert("CMYK"), "JPEG"),
        encode(small, "JPEG", progressive=True),
        encode(small, "WEBP", lossless=True),
        grey_png(deep, width=24, height=20, depth=16),
        grey_tiff(deep, width=24, height=20, depth=16, big_endian=True),
        grey_tiff(deep, width=24, height=20, depth=16, signed=True, deflated=True),
        tiff(np.arange(24 * 20 * 3, dtype=np.uint16).reshape(20, 24, 3), RGB, planar=True, rows=9),
        tiff(np.asarray(small), RGB, bigtiff=True),
        *unreadable().values(),
    ]


def media() -> list[bytes]:
    """Return HEIC and AVIF files: rotated, with alpha, grey, 10 bits, tiled, animated."""
    small = gradient(24, 20)
    modes = [small.convert(mode) for mode in ("L", "LA", "RGBA")]
    return [
        *(turned(small, 6, kind) for kind in ("HEIF", "AVIF")),
        *(encode(image, kind) for image in modes for kind in ("HEIF", "AVIF")),
        *(grid(encode(gradient(64, 64), kind), 2, 1, (120, 60)) for kind in ("HEIF", "AVIF")),
        deep_heic("RGB;16", (24, 20), bytes(range(240)) * 12),
        encode(small, "AVIF", save_all=True, append_images=[small.rotate(90)]),
    ]


def dicoms() -> list[bytes]:
    """Return DICOM files of each supported kind, without their preamble."""
    grey = np.arange(120, dtype=np.uint8).reshape(12, 10)
    colour = np.stack([grey, grey + 1, grey + 2], 2)
    window: Elements = {0x00281050: ("DS", "60"), 0x00281051: ("DS", "90")}
    rescale: Elements = {0x00281052: ("DS", "-9"), 0x00281053: ("DS", "2")}
    table: Elements = {
        0x00283002: ("US", [120, 0, 8]),
        0x00283006: ("OW", bytes(range(120)) * 2),
    }
    palette: Elements = {}
    for number in range(3):
        palette |= {
            0x00281101 + number: ("US", [120, 0, 16]),
            0x00281201 + number: ("OW", bytes(240)),
        }
    made = [
        *(dicom(grey, window, syntax=syntax) for syntax in (IMPLICIT, BIG_ENDIAN, DEFLATED)),
        dicom(grey.astype(np.int16) - 99, {**window, **rescale}, colours="MONOCHROME1"),
        dicom(grey, {0x00283000: ("SQ", [table]), 0x00283010: ("SQ", [table])}),
        dicom(grey, {0x52009229: ("SQ", [{0x00289132: ("SQ", [window])}])}),
        dicom(grey, palette, colours="PALETTE COLOR"),
        dicom(grey, {0x00280120: ("US", [9])}),
        dicom(colour, colours="RGB"),
        dicom(colour, {0x00280006: ("US", [1])}, colours="YBR_FULL"),
        dicom(grey, syntax=RLE, frames=[rle_frame(b"\x77" + grey.tobytes())]),
        dicom(grey, syntax=JPEG, frames=[encode(Image.fromarray(grey), "JPEG")]),
        dicom(
            grey,
            syntax=JPEG_2000,
            frames=[encode(Image.fromarray(grey), "JPEG2000", no_jp2=True)],
        ),
    ]
    return [content[132:] for content in made]
