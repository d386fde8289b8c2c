"""JPEG files: the first picture, also of a multi-picture file (MPO), if its scans are few.

A progressive scan may have no bytes, but always costs a pass over the whole picture. Pillow reads
the segments before the first scan one by one in Python.
"""

from __future__ import annotations

import io
import re

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from topwork.errors import ImageError
from topwork.inputs.images.work import MOST_PASSES, check_size, too_many_pixels
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

MOST_SEGMENTS = 2_000
"""Raising it lets more segments, of up to 64 KB each, precede the first scan.

An ICC profile, an extended XMP packet or a C2PA manifest may take up to 255 segments.
"""
MOST_JUNK = 2**16
"""Raising it allows more bytes between these segments, which decoders skip."""
LEAST_PIXELS = 20_000
"""Lowering it lets small pictures have more scans: the least pixels that a scan counts for."""

_LONGEST = {0xDB: 1024, **dict.fromkeys({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 1024)}
"""Most bytes of segments that Pillow converts to lists: quantization tables, frame headers."""
_BARE = {0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}
"""Markers without a segment, so without a length."""
_SCAN, _END = 0xDA, 0xD9

# Restart markers may be anywhere in a scan. libjpeg skips the two bytes of other markers below 0xC0
# when it expects a restart, and ends otherwise: they have no length that could hide scans.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


def open_jpeg(content: bytes, spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the first picture, decoded later at 1/2, 1/4 or 1/8 size if that is large enough.

    Raises ImageError.
    """
    check_segments(content)
    image = JpegImageFile(io.BytesIO(content))  # Image.open may return an MpoImageFile
    check_size(*image.size, limits)
    check_scans(content, image.width * image.height, limits)
    image.draft(None, (spec.resize, spec.resize))
    return image


def check_segments(content: bytes) -> None:
    """Raise ImageError if the segments before the first scan are slow to read."""
    at, junk = 2, 0
    for _ in range(MOST_SEGMENTS):
        match = _MARKER.search(content, at)
        junk += (match.start() if match else len(content)) - at
        if junk > MOST_JUNK:
            raise ImageError(f"the JPEG is damaged: {junk} bytes between its segments")
        if match is None:
            return
        marker, at = content[match.end() - 1], match.end()
        if marker == _SCAN:
            return
        if marker not in _BARE:
            length = int.from_bytes(content[at : at + 2])
            if length > _LONGEST.get(marker, length):
                raise ImageError(f"the JPEG is damaged: a segment {marker:#x} of {length} bytes")
            at += length
    raise ImageError(f"the JPEG has over {MOST_SEGMENTS} segments before its first scan")


def check_scans(content: bytes, pixels: int, limits: InputLimits) -> None:
    """Raise ImageError if decoding the first picture takes too many passes over its pixels."""
    most = MOST_PASSES * limits.max_image_pixels // max(pixels, LEAST_PIXELS)
    # Data after the first picture may contain scans, too, so only a suspicious file is parsed.
    if content.count(b"\xff\xda") > most and _has_more_scans(content, most):
        raise too_many_pixels(f"the image has over {most} scans of {pixels} pixels", limits)


def _has_more_scans(content: bytes, most: int) -> bool:
    at, scans = 2, 0
    while match := _MARKER.search(content, at):
        marker, at = content[match.end() - 1], match.end()
        if marker == _END and scans:  # before the first scan it ends a tables-only stream
            break
        scans += marker == _SCAN
        if scans > most:
            return True
        if marker not in _BARE:
            at += int.from_bytes(content[at : at + 2])
    return False
