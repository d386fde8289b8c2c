"""Reader of the first directory of a TIFF or BigTIFF file, and writer of a reduced directory."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from topwork.errors import ImageError

MOST_STRIPS = 40_000
"""Raising it lets a file have more strips or tiles; Pillow takes 20 us for each in Python."""
MOST_BYTES = 2**20
"""Raising it allows longer values of other tags; the longest palette has 0.4 MB."""


class Tag(IntEnum):
    """The tags that affect pixels (TIFF 6.0 and its technical notes)."""

    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    PLANAR = 284
    PREDICTOR = 317
    PALETTE = 320
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_BYTES = 325
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347
    JPEG_PROCESS = 512
    JPEG_OFFSET = 513
    JPEG_BYTES = 514
    JPEG_RESTARTS = 515
    JPEG_Q_TABLES = 519
    JPEG_DC_TABLES = 520
    JPEG_AC_TABLES = 521
    YCBCR_COEFFICIENTS = 529
    YCBCR_SUBSAMPLING = 530
    YCBCR_POSITIONING = 531
    REFERENCE_BLACK_WHITE = 532
    XMP = 700


LISTS = {Tag.STRIP_OFFSETS, Tag.STRIP_BYTES, Tag.TILE_OFFSETS, Tag.TILE_BYTES}
"""Tags with a value for each strip or tile."""
_RAW = {Tag.JPEG_TABLES, Tag.YCBCR_COEFFICIENTS, Tag.REFERENCE_BLACK_WHITE, Tag.XMP}
"""Tags whose values are not parsed as integers."""
_TAGS = frozenset(Tag)

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 13: 4, 16: 8}
"""Bytes of a value, by type."""
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_SHORT, _LONG = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """The tags of a picture that affect its pixels."""

    order: str
    """Byte order of the file, as struct writes it: ``<`` or ``>``."""
    integers: Mapping[Tag, tuple[int, ...]]
    raw: Mapping[Tag, tuple[int, bytes]]
    """Type and bytes of unparsed values."""

    def numbers(self, tag: Tag, *default: int) -> tuple[int, ...]:
        """Return the values of a tag or the default. Raises ImageError if both are missing."""
        values = self.integers.get(tag, default)
        if not values:
            raise ImageError(f"the TIFF is damaged: it has no {tag.name}")
        return values

    def number(self, tag: Tag, *default: int) -> int:
        """Return the first value of a tag or the default. Raises ImageError if both are missing."""
        return self.numbers(tag, *default)[0]

    def changed(self, tags: Mapping[Tag, tuple[int, ...]], *, order: str = "") -> Directory:
        """Return a directory with other values of ``tags``; an empty value removes the tag."""
        integers = {tag: values for tag, values in {**self.integers, **tags}.items() if values}
        return replace(self, integers=integers, order=order or self.order)


def read(content: bytes) -> Directory:
    """Return the first directory of a file. Raises ImageError, struct.error."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = 43 in content[2:4]
    offset, counted, entry, size = ("Q", "Q", "HHQ", 8) if is_big else ("I", "H", "HHI", 4)
    (at,) = struct.unpack_from(order + offset, content, size)
    (count,) = struct.unpack_from(order + counted, content, at)
    at += struct.calcsize(order + counted)
    width = struct.calcsize(order + entry) + size
    integers: dict[Tag, tuple[int, ...]] = {}
    raw: dict[Tag, tuple[int, bytes]] = {}
    for start in range(at, at + width * min(count, 2**16), width):
        number, kind, length = struct.unpack_from(order + entry, content, start)
        if number not in _TAGS or number in integers or number in raw:
            continue
        tag, span = Tag(number), length * _SIZES.get(kind, 0)
        if not span:
            continue
        if span > (MOST_STRIPS * _SIZES[kind] if tag in LISTS else MOST_BYTES):
            if tag == Tag.XMP:
                continue
            raise ImageError(f"the TIFF's {tag.name} has {length} values")
        value_at = start + width - size
        if span > size:
            (value_at,) = struct.unpack_from(order + offset, content, value_at)
        if tag in _RAW:
            raw[tag] = kind, content[value_at : value_at + span]
        elif kind in _INTEGERS:
            values = f"{order}{length}{_INTEGERS[kind]}"
            integers[tag] = struct.unpack_from(values, content, value_at)
    return Directory(order=order, integers=integers, raw=raw)


def write(content: bytes, directory: Directory) -> bytes:
    """Return a TIFF file with the strips or tiles of ``content`` and only this directory."""
    order = directory.order
    values = dict(directory.raw)
    for tag, numbers in directory.integers.items():
        kind = _SHORT if max(numbers) < 2**16 else _LONG
        values[tag] = kind, struct.pack(f"{order}{len(numbers)}{_INTEGERS[kind]}", *numbers)
    start = len(content) + len(content) % 2
    data_at = start + 2 + 12 * len(values) + 4
    entries, data = [], bytearray()
    for tag, (kind, value) in sorted(values.items()):
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack(order + "I", data_at + len(data))
            data += value + bytes(len(value) % 2)
        entries.append(struct.pack(order + "HHI", tag, kind, len(value) // _SIZES[kind]) + field)
    return b"".join(
        (
            struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, start),
            content[8:],
            bytes(start - len(content)),
            struct.pack(order + "H", len(values)),
            *entries,
            bytes(4),  # no further directory
            data,
        )
    )
