"""JPEG 2000 files, if their tiles, precincts, code-blocks and layers are bounded by their pixels.

OpenJPEG has a structure for each of these, and looks at each packet, whether the file has it or
not: a few bytes may ask for gigabytes, or for hours.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from topwork.bundle.images.isobmff import boxes
from topwork.bundle.images.work import Steps, check_size
from topwork.bundle.limits import Limits
from topwork.bundle.preprocess import PreprocessSpec
from topwork.errors import ImageError

MOST_TILES = 4_096
"""Raising it lets a picture have more tiles, of 6 KB of memory each."""
MOST_PARTS = 1_000_000
"""Raising it lets a picture have more precincts and code-blocks, of 150 bytes of memory each.

50 megapixels of three colours in code-blocks of 16 x 16, small ones, have 800,000.
"""
MOST_PACKETS = 5_000_000
"""Raising it lets a picture have more packets, one a layer and precinct."""
MOST_MARKERS = 10_000
"""Raising it lets a file have more marker segments, some of which are read in Python."""
MOST_HEADER_BYTES = 2**21
"""Raising it lets the header box be longer, which is read in Python: a profile may be in it."""

CODESTREAM = b"\xff\x4f\xff\x51"
_SIZE, _STYLE, _COMPONENT_STYLE, _TILE, _DATA = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_END = 0xFFD9


def open_jpeg2000(content: bytes, _spec: PreprocessSpec, limits: Limits) -> Image.Image:
    """Return the picture, not decoded yet. Raises ImageError."""
    codestream = content
    if not content.startswith(CODESTREAM):
        found: dict[bytes, tuple[int, int]] = {}
        for kind, start, end in boxes(content, 0, len(content), Steps()):
            found.setdefault(kind, (start, end))  # decoders, too, take the first of a kind
        start, end = found[b"jp2h"]
        if end - start > MOST_HEADER_BYTES:
            raise ImageError(f"the JPEG 2000 has a header of {end - start} bytes")
        start, end = found[b"jp2c"]
        codestream = content[start:end]
    check_size(*checked_codestream(codestream), limits)
    image = Jpeg2KImageFile(io.BytesIO(content))
    check_size(*image.size, limits)
    return image


def checked_codestream(content: bytes) -> tuple[int, int]:
    """Return the width and height of a codestream (ISO/IEC 15444-1, annex A).

    Raises ImageError if it has more parts than pictures of that size need.
    """
    size = struct.unpack_from(">8IH", content, 8)
    right, bottom, left, top, wide, high, tiles_left, tiles_top, components = size
    width, height = right - left, bottom - top
    if not (wide and high):
        raise ImageError("the JPEG 2000 is damaged: its tiles have no pixels")
    tiles = math.ceil((right - tiles_left) / wide) * math.ceil((bottom - tiles_top) / high)
    if tiles > MOST_TILES or components > 4:
        raise ImageError(f"the JPEG 2000 has {tiles} tiles of {components} components")
    layers = 1
    for marker, at in _markers(content):
        if marker == _STYLE:
            layers = max(layers, int.from_bytes(content[at + 4 : at + 6]))
            has_precincts, style = content[at + 2] & 1, content[at + 7 : at + 45]
        elif marker == _COMPONENT_STYLE:
            has_precincts, style = content[at + 3] & 1, content[at + 4 : at + 42]
        else:
            continue
        precincts, blocks = _parts(width, height, style if has_precincts else style[:5])
        precincts = components * (precincts + tiles * (style[0] + 1))
        blocks = components * (blocks + tiles * (3 * style[0] + 1))
        if precincts + blocks > MOST_PARTS or precincts * layers > MOST_PACKETS:
            raise ImageError(
                f"the JPEG 2000 has {precincts} precincts of {layers} layers and {blocks} "
                f"code-blocks for {width} x {height} pixels"
            )
    return width, height


def _parts(width: int, height: int, style: bytes) -> tuple[int, int]:
    """Return about how many precincts and code-blocks a component of one tile has."""
    levels, block_width, block_height = style[0], style[1] + 2, style[2] + 2
    sizes = style[5:] or b"\xff" * (levels + 1)
    precincts = blocks = 0
    for level in range(levels + 1):
        wide, high = sizes[level] & 15, sizes[level] >> 4  # logarithms, as the others
        left_out = levels - level
        inner = 1 if level else 0
        precincts += _count(width, left_out + wide) * _count(height, left_out + high)
        blocks += _count(width, left_out + max(min(block_width, wide - inner), 0)) * _count(
            height, left_out + max(min(block_height, high - inner), 0)
        )
    return precincts, blocks


def _count(length: int, logarithm: int) -> int:
    return -(-length >> logarithm)


def _markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker segment outside of the tiles' data, and where its length is."""
    at, tile_end = 2, len(content)
    for _ in range(MOST_MARKERS):
        if at + 4 > len(content):
            return
        marker, length = struct.unpack_from(">2H", content, at)
        at += 2
        if marker == _END:
            return
        if marker == _DATA:
            at = tile_end
            continue
        if marker == _TILE:
            (tile_length,) = struct.unpack_from(">I", content, at + 4)
            tile_end = at - 2 + tile_length if tile_length else len(content)
        yield marker, at
        at += length
    raise ImageError(f"the JPEG 2000 has over {MOST_MARKERS} marker segments")
