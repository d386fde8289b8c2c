"""Writer of TIFF files, of kinds that libraries rarely write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, SAMPLES, ROWS, STRIP_BYTES = 266, 273, 277, 278, 279
PLANAR, PALETTE, TILE_WIDTH, TILE_HEIGHT, EXTRA, FORMAT = 284, 320, 322, 323, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE_COLOUR, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
NONE, DEFLATE = 1, 8

Tags = Mapping[int, int | tuple[int, ...]]


def tiff(
    samples: NDArray[Any],
    photometric: int = BLACK_IS_ZERO,
    *,
    big_endian: bool = False,
    planar: bool = False,
    deflated: bool = False,
    rows: int = 0,
    tags: Tags | None = None,
    bigtiff: bool = False,
) -> bytes:
    """Return a TIFF file of samples (height, width) or (height, width, samples a pixel).

    Each strip has ``rows`` rows, by default all. ``tags`` adds or replaces tags.
    """
    planes = samples if samples.ndim == 3 else samples[..., None]
    height, width, count = planes.shape
    stored = planes.astype(planes.dtype.newbyteorder(">" if big_endian else "<"))
    parts = [stored[..., plane] for plane in range(count)] if planar else [stored]
    rows = rows or height
    strips = [part[row : row + rows].tobytes() for part in parts for row in range(0, height, rows)]
    kind = {"u": 1, "i": 2, "f": 3}[planes.dtype.kind]
    return tiff_of(
        strips,
        {
            WIDTH: width,
            HEIGHT: height,
            BITS: (8 * planes.itemsize,) * count,
            PHOTOMETRIC: photometric,
            SAMPLES: count,
            ROWS: rows,
            PLANAR: 2 if planar else 1,
            FORMAT: (kind,) * count,
            **(tags or {}),
        },
        big_endian=big_endian,
        deflated=deflated,
        bigtiff=bigtiff,
    )


def tiff_of(
    strips: list[bytes],
    tags: Tags,
    *,
    big_endian: bool = False,
    deflated: bool = False,
    bigtiff: bool = False,
) -> bytes:
    """Return a TIFF file of strips, deflated here if ``deflated``."""
    order = ">" if big_endian else "<"
    if deflated:
        strips = [zlib.compress(strip) for strip in strips]
    head = 16 if bigtiff else 8
    offsets, at = [], head
    for strip in strips:
        offsets.append(at)
        at += len(strip) + len(strip) % 2
    values = {
        COMPRESSION: DEFLATE if deflated else NONE,
        STRIP_OFFSETS: tuple(offsets),
        STRIP_BYTES: tuple(map(len, strips)),
        **tags,
    }
    counted, entry, word, size = ("Q", "HHQ", "Q", 8) if bigtiff else ("H", "HHI", "I", 4)
    behind = at + struct.calcsize(order + counted) + len(values) * (4 + 2 * size) + size
    entries, data = b"", b""
    for tag, value in sorted(values.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        kind, letter = (3, "H") if max(numbers) < 2**16 else (4, "I")
        packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        field = packed.ljust(size, b"\0")
        if len(packed) > size:
            field = struct.pack(order + word, behind + len(data))
            data += packed + bytes(len(packed) % 2)
        entries += struct.pack(order + entry, tag, kind, len(numbers)) + field
    magic = struct.pack(order + "2sH", b"MM" if big_endian else b"II", 43 if bigtiff else 42)
    if bigtiff:
        magic += struct.pack(order + "HH", 8, 0)
    body = b"".join(strip + bytes(len(strip) % 2) for strip in strips)
    return b"".join(
        (
            magic,
            struct.pack(order + word, at),
            body,
            struct.pack(order + counted, len(values)),
            entries,
            bytes(size),
            data,
        )
    )
