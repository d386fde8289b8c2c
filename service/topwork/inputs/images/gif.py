"""GIF files: the first frame, if few blocks precede it.

Pillow reads these blocks (comments, metadata of applications) one by one in Python.
"""

from __future__ import annotations

import io
import struct

from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from topwork.errors import ImageError
from topwork.inputs.images.work import check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

MOST_BLOCKS = 100_000
"""Raising it lets more blocks, of up to 255 bytes, precede the first frame: 1 s per million."""

_EXTENSION, _FRAME = 0x21, 0x2C


def open_gif(content: bytes, _spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the first frame, not decoded yet. Raises ImageError."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    x, y, frame_width, frame_height = struct.unpack_from(
        "<4H", content, _first_frame(content, flags)
    )
    check_size(max(width, x + frame_width), max(height, y + frame_height), limits)
    return GifImageFile(io.BytesIO(content))


def _first_frame(content: bytes, flags: int) -> int:
    """Return the offset of the first frame's extent. Raises ImageError, IndexError if none."""
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MOST_BLOCKS):
        byte = content[at]
        at += 1
        if in_extension:
            at += byte
            in_extension = byte > 0
        elif byte == _FRAME:
            return at
        elif byte == _EXTENSION:
            at += 1  # its label
            in_extension = True
    raise ImageError(f"the GIF has over {MOST_BLOCKS} blocks before its first frame")
