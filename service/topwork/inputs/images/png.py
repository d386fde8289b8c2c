"""PNG files. The decoder gets only the chunks of the first picture that have a valid checksum.

As in libpng and in browsers, a damaged ancillary chunk is ignored and a damaged critical chunk is
an error. Text, colour profiles and further frames are dropped.
"""

from __future__ import annotations

import io
import zlib

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from topwork.errors import ImageError
from topwork.inputs.images.work import check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

MOST_CHUNKS = 100_000
"""Raising it lets a file have more chunks, which are read in Python: 1 s per million."""

_CRITICAL = {b"IHDR", b"PLTE", b"IDAT"}
_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
# Text chunks with an orientation, from the time before the eXIf chunk.
_ORIENTATIONS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_PALETTE = 3
_SAMPLES = {0: 2, 2: 6}
"""Bytes of a transparent sample, by colour type."""


def open_png(content: bytes, _spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the image, not decoded yet, or an animation's default image. Raises ImageError."""
    picture, metadata = _chunks(content)
    try:
        image = _open(picture[:1] + metadata + picture[1:])
    except Exception:
        if not metadata:
            raise
        image = _open(picture)  # damaged metadata does not make the image unreadable
    check_size(*image.size, limits)
    return image


def _open(chunks: list[memoryview]) -> Image.Image:
    return PngImageFile(io.BytesIO(b"".join((b"\x89PNG\r\n\x1a\n", *chunks, _END))))


_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def _chunks(content: bytes) -> tuple[list[memoryview], list[memoryview]]:
    """Return the chunks of the picture, and metadata chunks that may have its orientation."""
    view = memoryview(content)
    picture: list[memoryview] = []
    metadata: list[memoryview] = []
    colour_type, colours, at = 0, 0, 8
    for _ in range(MOST_CHUNKS):
        end = at + 12 + int.from_bytes(view[at : at + 4])
        name = content[at + 4 : at + 8]
        if name == b"IEND" or not name.isalpha():
            break
        body, chunk = view[at + 8 : end - 4], view[at:end]
        at = end
        if name in _CRITICAL:
            if end > len(content):
                raise ImageError(f"the PNG is cut off in its chunk {name.decode()}")
            if not _is_intact(chunk):
                raise ImageError(f"the PNG is damaged: the checksum of {name.decode()} is wrong")
            picture.append(chunk)
            if name == b"IHDR":
                colour_type = body[9]
            elif name == b"PLTE":
                colours = len(body) // 3
            elif colour_type == _PALETTE and not colours:
                raise ImageError("the PNG is damaged: it has no palette")
        elif name == b"tRNS":
            fits = len(body) == _SAMPLES.get(colour_type, -1)
            if (fits or (colour_type == _PALETTE and len(body) <= colours)) and _is_intact(chunk):
                picture.append(chunk)
        elif (
            name == b"eXIf" or (name in _TEXT and bytes(body[:22]).startswith(_ORIENTATIONS))
        ) and _is_intact(chunk):
            metadata.append(chunk)
    else:
        raise ImageError(f"the PNG has over {MOST_CHUNKS} chunks")
    return picture, metadata


def _is_intact(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
