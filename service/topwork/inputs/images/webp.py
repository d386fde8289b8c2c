"""WebP files: the first frame. Opening allocates its memory, so the size is checked before."""

from __future__ import annotations

import io
import struct

from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from topwork.inputs.images.work import check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits


def open_webp(content: bytes, _spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the first frame, not decoded yet. Raises ImageError."""
    check_size(*_size(content), limits)
    image = WebPImageFile(io.BytesIO(content))
    check_size(*image.size, limits)
    return image


def _size(content: bytes) -> tuple[int, int]:
    """Return the width and height in the header (RFC 9649, 2.5 to 2.7)."""
    kind, head = content[12:16], content[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<2H", head, 6)
    return width & 0x3FFF, height & 0x3FFF
