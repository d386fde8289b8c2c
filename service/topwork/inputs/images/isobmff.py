"""ISO base media files (ISO/IEC 14496-12) of still images: reader and writer of their items."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from topwork.errors import ImageError
from topwork.inputs.images.work import Steps

Property: TypeAlias = tuple[bytes, bytes]
"""Kind, such as ``ispe``, and content."""
ImageItem: TypeAlias = tuple[bytes, bytes, Sequence[Property]]
"""Kind, content and properties of an item to write."""
Reference: TypeAlias = tuple[bytes, int, Sequence[int]]
"""Kind, source item and target items."""


@dataclass(slots=True)
class Item:
    """An item: coded samples, or a picture derived from other items."""

    kind: bytes = b""
    """Four characters, such as ``hvc1``."""
    extents: list[tuple[int, int]] = field(default_factory=list)
    """Start and end in the file of each part of the content."""
    properties: list[Property] = field(default_factory=list)


@dataclass(slots=True)
class Meta:
    """The items of a file."""

    primary: int = 0
    items: dict[int, Item] = field(default_factory=dict)
    references: dict[tuple[bytes, int], list[int]] = field(default_factory=dict)
    """Targets, by kind and source."""


def read(file: bytes, steps: Steps) -> Meta:
    """Return the items of a file. Raises ImageError if it has no items, or needs too many steps."""
    meta = Meta()
    for kind, start, end in boxes(file, 0, len(file), steps):
        if kind == b"meta":
            _Reader(file, steps).read(start + 4, end, meta)
            return meta
    raise ImageError("the image is damaged or cut off: it has no items")


def write(
    parts: Sequence[ImageItem], references: Sequence[Reference], *, primary: int, brand: bytes
) -> bytes:
    """Return a file of these items, numbered from 1. Equal contents are written once."""
    distinct = dict.fromkeys(each for _, _, properties in parts for each in properties)
    indices = {each: index for index, each in enumerate(distinct, 1)}
    contents = list(dict.fromkeys(content for _, content, _ in parts))
    numbers = range(1, len(parts) + 1)
    kinds = [
        box(b"infe", struct.pack(">BxxxHH4sx", 2, number, 0, kind))
        for number, (kind, _, _) in zip(numbers, parts, strict=True)
    ]
    associations = [
        struct.pack(">HB", number, len(properties))
        + b"".join(
            struct.pack(">H", indices[each] | (0x8000 if each[0] in _ESSENTIAL else 0))
            for each in properties
        )
        for number, (_, _, properties) in zip(numbers, parts, strict=True)
    ]
    reference_boxes = [
        box(kind, struct.pack(f">HH{len(targets)}H", source, len(targets), *targets))
        for kind, source, targets in references
    ]

    def meta(at: int) -> bytes:
        starts = {}
        for content in contents:
            starts[content] = at
            at += len(content)
        locations = [
            struct.pack(">HHHII", number, 0, 1, starts[content], len(content))
            for number, (_, content, _) in zip(numbers, parts, strict=True)
        ]
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", struct.pack(">4xH", primary)),
            box(b"iloc", struct.pack(">4xBBH", 0x44, 0, len(parts)), *locations),
            box(b"iinf", struct.pack(">4xH", len(parts)), *kinds),
            box(b"iref", bytes(4), *reference_boxes) if references else b"",
            box(
                b"iprp",
                box(b"ipco", *(box(kind, content) for kind, content in indices)),
                box(b"ipma", struct.pack(">II", 1, len(parts)), *associations),
            ),
        )

    start = box(b"ftyp", brand, bytes(4), brand, b"mif1miaf")
    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", *contents)


def box(kind: bytes, *content: bytes) -> bytes:
    """Return a box."""
    return b"".join((struct.pack(">I4s", 8 + sum(map(len, content)), kind), *content))


_ESSENTIAL = {b"hvcC", b"av1C", b"irot", b"imir", b"clap", b"a1op", b"lsel"}
"""Properties that a reader must not ignore."""


def boxes(file: bytes, at: int, end: int, steps: Steps) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind, and the start and end of the content, of each box; a box costs a step."""
    while at + 8 <= end:
        steps.take()
        length, kind = struct.unpack_from(">I4s", file, at)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", file, at + 8)
            header = 16
        stop = at + length if length else end
        if not at + header <= stop <= end:
            raise ImageError(f"the image is damaged or cut off in its box {kind!r}")
        yield kind, at + header, stop
        at = stop


class _Reader:
    """Parser of the ``meta`` box; a box or field costs a step."""

    def __init__(self, file: bytes, steps: Steps) -> None:
        self._file = file
        self._steps = steps

    def read(self, start: int, end: int, meta: Meta) -> None:
        children: dict[bytes, tuple[int, int]] = {}
        for kind, inner, stop in self._boxes(start, end):
            children.setdefault(kind, (inner, stop))
        at, _ = children[b"pitm"]
        meta.primary = self._fields(at + 4).take(4 if self._file[at] else 2)
        self._kinds(*children[b"iinf"], meta)
        self._locations(children[b"iloc"][0], children.get(b"idat", (0, 0)), meta)
        if b"iref" in children:
            self._references(*children[b"iref"], meta)
        self._properties(*children[b"iprp"], meta)
        if meta.primary not in meta.items:
            raise ImageError("the image is damaged: its primary item is missing")

    def _kinds(self, start: int, end: int, meta: Meta) -> None:
        for _, at, _ in self._boxes(start + (8 if self._file[start] else 6), end):
            fields = self._fields(at + 4)
            item = meta.items.setdefault(fields.take(4 if self._file[at] > 2 else 2), Item())
            item.kind = self._file[fields.at + 2 : fields.at + 6]

    def _locations(self, start: int, idat: tuple[int, int], meta: Meta) -> None:
        version, fields = self._file[start], self._fields(start + 4)
        sizes = fields.take(2)
        offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_size = sizes & 15 if version else 0
        wide = 4 if version > 1 else 2
        for _ in range(fields.take(wide)):
            item = meta.items.setdefault(fields.take(wide), Item())
            is_in_idat = version and fields.take(2) & 15 == 1
            fields.take(2)
            base = fields.take(base_size) + (idat[0] if is_in_idat else 0)
            for _ in range(fields.take(2)):
                fields.take(index_size)
                offset = base + fields.take(offset_size)
                length = fields.take(length_size)
                item.extents.append((offset, offset + length if length else len(self._file)))

    def _references(self, start: int, end: int, meta: Meta) -> None:
        size = 4 if self._file[start] else 2
        for kind, at, _ in self._boxes(start + 4, end):
            fields = self._fields(at)
            targets = meta.references.setdefault((kind, fields.take(size)), [])
            targets.extend([fields.take(size) for _ in range(fields.take(2))])

    def _properties(self, start: int, end: int, meta: Meta) -> None:
        properties: list[Property] = []
        for box, at, stop in self._boxes(start, end):
            if box == b"ipco":
                properties = [
                    (kind, self._file[inner:last]) for kind, inner, last in self._boxes(at, stop)
                ]
            elif box == b"ipma":
                fields = self._fields(at + 4)
                wide, narrow = (4 if self._file[at] else 2), (2 if self._file[at + 3] & 1 else 1)
                for _ in range(fields.take(4)):
                    item = meta.items.setdefault(fields.take(wide), Item())
                    for _ in range(fields.take(1)):
                        index = fields.take(narrow) & (0x7FFF if narrow == 2 else 0x7F)
                        if 0 < index <= len(properties):
                            item.properties.append(properties[index - 1])

    def _boxes(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        return boxes(self._file, at, end, self._steps)

    def _fields(self, at: int) -> _Fields:
        return _Fields(self._file, at, self._steps)


class _Fields:
    """Reader of consecutive unsigned integers."""

    def __init__(self, file: bytes, at: int, steps: Steps) -> None:
        self._file = file
        self._steps = steps
        self.at = at

    def take(self, size: int) -> int:
        """Return the next ``size`` bytes as an integer. Raises ImageError after the end."""
        self._steps.take()
        self.at += size
        if self.at > len(self._file):
            raise ImageError("the image is cut off within its items")
        return int.from_bytes(self._file[self.at - size : self.at])
