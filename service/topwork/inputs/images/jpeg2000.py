"""JPEG 2000 files, if their tiles, precincts, code-blocks and layers fit the number of pixels.

OpenJPEG allocates a structure for each of these, and visits each packet, even if the file does not
contain it: a few bytes may cost gigabytes or hours.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from topwork.errors import ImageError
from topwork.inputs.images.isobmff import boxes
from topwork.inputs.images.work import Steps, check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

MOST_TILES = 4_096
"""Raising it lets a picture have more tiles, each of 6 KB of memory."""
MOST_PARTS = 1_000_000
"""Raising it lets a picture have more precincts and code-blocks, each of 150 bytes of memory.

50 megapixels of three components in small code-blocks of 16 x 16 have 800,000.
"""
MOST_PACKETS = 5_000_000
"""Raising it lets a picture have more packets, one per layer and precinct."""
MOST_MARKERS = 10_000
"""Raising it lets a file have more marker segments; some of them are read in Python."""
MOST_HEADER_BYTES = 2**21
"""Raising it allows a longer header box, which is read in Python and may contain an ICC profile."""

MOST_SAMPLES = 10_000_000
"""Raising it decodes more samples; larger pictures are decoded at a lower resolution.

A few bytes may cause 30 passes over a code-block, 0.4 us per sample; photos take 0.03 us.
"""

CODESTREAM = b"\xff\x4f\xff\x51"
_MOST_LEVELS = 32  # table A.15
_SIZE, _STYLE, _COMPONENT_STYLE, _TILE, _DATA = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_END = 0xFFD9


@dataclass(frozen=True, slots=True, kw_only=True)
class Codestream:
    """The size of a picture, and its resolution levels."""

    width: int
    height: int
    components: int
    levels: int
    """Number of lower resolutions, each half of the previous, at which Pillow decodes all tiles."""

    def size(self, reduction: int = 0) -> tuple[int, int]:
        """Return the width and height at a lower resolution."""
        return _part(self.width, reduction), _part(self.height, reduction)


def open_jpeg2000(content: bytes, _spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the picture, not decoded yet. Raises ImageError."""
    codestream = content
    if not content.startswith(CODESTREAM):
        extents: dict[bytes, tuple[int, int]] = {}
        for kind, start, end in boxes(content, 0, len(content), Steps()):
            extents.setdefault(kind, (start, end))  # decoders, too, take the first of a kind
        start, end = extents[b"jp2h"]
        if end - start > MOST_HEADER_BYTES:
            raise ImageError(f"the JPEG 2000 has a header of {end - start} bytes")
        start, end = extents[b"jp2c"]
        codestream = content[start:end]
    header = read_codestream(codestream)
    check_size(*header.size(), limits)
    image = Jpeg2KImageFile(io.BytesIO(content))
    check_size(*image.size, limits)
    levels = 0 if image.mode == "P" else header.levels  # palette indices cannot be averaged
    if reduction := _reduction(header, levels):
        image.reduce = reduction
        # The decoder fails if Pillow rounds the size differently, so the size must be divisible.
        width, height = header.size(reduction)
        image._size = width << reduction, height << reduction  # noqa: SLF001 - as plugins set it
    return image


def _reduction(codestream: Codestream, levels: int) -> int:
    """Return the least reduction that gives at most MOST_SAMPLES samples. Raises ImageError."""
    for reduction in range(levels + 1):
        width, height = codestream.size(reduction)
        if (samples := codestream.components * width * height) <= MOST_SAMPLES:
            return reduction
    raise ImageError(
        f"the JPEG 2000 has {samples} samples to decode at its lowest resolution; the limit is "
        f"{MOST_SAMPLES}",
        reason="IMAGE_TOO_LARGE",
    )


def read_codestream(content: bytes) -> Codestream:
    """Return the parameters in the headers of a codestream (ISO/IEC 15444-1, annex A).

    Raises ImageError if it has more parts than a picture of that size needs.
    """
    size = struct.unpack_from(">8IH", content, 8)
    right, bottom, left, top, wide, high, tiles_left, tiles_top, components = size
    width, height = right - left, bottom - top
    if not (wide and high):
        raise ImageError("the JPEG 2000 is damaged: its tiles have no pixels")
    tiles = math.ceil((right - tiles_left) / wide) * math.ceil((bottom - tiles_top) / high)
    if tiles > MOST_TILES or components > 4:
        raise ImageError(f"the JPEG 2000 has {tiles} tiles of {components} components")
    # Pillow loses tiles whose origin is between pixels of a lower resolution.
    levels = 0 if left or top else _MOST_LEVELS if tiles == 1 else _twos(wide | high)
    layers = 1
    for marker, at in _markers(content):
        if marker == _STYLE:
            layers = max(layers, int.from_bytes(content[at + 4 : at + 6]))
            has_precincts, style = content[at + 2] & 1, content[at + 7 : at + 45]
        elif marker == _COMPONENT_STYLE:
            has_precincts, style = content[at + 3] & 1, content[at + 4 : at + 42]
        else:
            continue
        levels = min(levels, style[0])
        precincts, blocks = _parts(width, height, style if has_precincts else style[:5])
        precincts = components * (precincts + tiles * (style[0] + 1))
        blocks = components * (blocks + tiles * (3 * style[0] + 1))
        if precincts + blocks > MOST_PARTS or precincts * layers > MOST_PACKETS:
            raise ImageError(
                f"the JPEG 2000 has {precincts} precincts of {layers} layers and {blocks} "
                f"code-blocks for {width} x {height} pixels"
            )
    return Codestream(width=width, height=height, components=components, levels=levels)


def _parts(width: int, height: int, style: bytes) -> tuple[int, int]:
    """Return the approximate precincts and code-blocks of a component of a single tile."""
    levels, block_width, block_height = style[0], style[1] + 2, style[2] + 2
    sizes = style[5:] or b"\xff" * (levels + 1)
    precincts = blocks = 0
    for level in range(levels + 1):
        wide, high = sizes[level] & 15, sizes[level] >> 4  # logarithms, like the block sizes
        reduction = levels - level
        inner = 1 if level else 0
        precincts += _part(width, reduction + wide) * _part(height, reduction + high)
        blocks += _part(width, reduction + max(min(block_width, wide - inner), 0)) * _part(
            height, reduction + max(min(block_height, high - inner), 0)
        )
    return precincts, blocks


def _part(length: int, logarithm: int) -> int:
    return -(-length >> logarithm)


def _twos(number: int) -> int:
    """Return the exponent of 2 in the factorization of a positive number."""
    return (number & -number).bit_length() - 1


def _markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker outside of tile data, and the offset of its segment's length."""
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
