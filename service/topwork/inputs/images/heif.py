"""HEIF and AVIF files: the primary item, if its decoding cost is proportional to its pixels.

A file may claim few pixels and have many coded pixels, refer to a tile a thousand times, or have a
video of many frames as a tile. So coded sizes and frames are counted before decoding. Decoders get
a reduced file without metadata, which may be damaged or highly compressed, and without thumbnails
and further pictures.
"""

from __future__ import annotations

import functools
import io
import struct

from PIL import AvifImagePlugin, Image, ImageFile

from topwork.errors import ImageError
from topwork.inputs.images import isobmff
from topwork.inputs.images.coded import av1_passes, hevc_passes
from topwork.inputs.images.isobmff import ImageItem, Item, Meta
from topwork.inputs.images.work import Steps, check_size, too_many_pixels
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

MOST_ITEMS = 4_096
"""Raising it lets a picture be composed of more items, repetitions included."""
MOST_TILES = 3
"""Raising it makes decoding of a small file cost more: HEVC takes 15 to 150 ns per pixel.

It is the limit of coded pixels of all tiles of a picture and its alpha, as a multiple of the
largest allowed image.
"""
MOST_SLICES = 8
"""The same limit with every slice or frame counted as large as its tile."""
MOST_DERIVATIONS = 3
"""Raising it lets derived pictures be nested deeper."""

_HEVC, _AV1 = {b"hvc1", b"hev1"}, {b"av01"}
_DERIVED = {b"grid", b"iden"}
_PROPERTIES = {
    b"ispe", b"hvcC", b"av1C", b"pixi", b"colr", b"auxC", b"irot", b"imir", b"clap",
    b"a1op", b"a1lx", b"lsel",
}  # fmt: skip
"""Properties that decoders use."""

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the server already has a thread per core


def open_heif(content: bytes, _spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the primary picture, not decoded yet, coded as HEVC or AV1.

    AVIF has an EXIF orientation that Pillow derives from the item's properties. Decoding HEIF
    applies its properties; ``info["turned"]`` is True if they rotate or mirror the picture. The
    file's own EXIF orientation is ignored, as ISO/IEC 23008-12 requires. Raises ImageError.
    """
    steps = Steps()
    picture = _Picture(content, isobmff.read(content, steps), limits, steps)
    file = io.BytesIO(picture.to_file())
    plugin = AvifImagePlugin.AvifImageFile if picture.is_avif else heif_class()
    image: ImageFile.ImageFile = plugin(file)
    image.info["turned"] = picture.is_turned
    check_size(*image.size, limits)
    return image


class _Picture:
    """An item with all items that it is composed of, and their decoding cost."""

    def __init__(self, file: bytes, meta: Meta, limits: InputLimits, steps: Steps) -> None:
        self._file = file
        self._meta = meta
        self._limits = limits
        self._steps = steps
        self._parts: dict[int, ImageItem] = {}
        self._references: list[tuple[bytes, int, list[int]]] = []
        self._inputs: dict[int, list[int]] = {}
        self._costs: dict[int, tuple[int, int]] = {}
        self._contents: dict[tuple[tuple[int, int], ...], bytes] = {}
        self._length = self._visits = self._pixels = self._passes = 0
        self._alphas: dict[int, list[int]] = {}
        for (kind, source), targets in meta.references.items():
            if kind == b"auxl" and _is_alpha(meta.items.get(source, Item())):
                for target in targets:
                    self._alphas.setdefault(target, []).append(source)
        self._add(meta.primary, depth=0)

    @property
    def is_avif(self) -> bool:
        """True if the picture is coded as AV1. Raises ImageError if it has mixed codings."""
        codings = {kind for kind, _, _ in self._parts.values()} - _DERIVED
        if not (codings <= _AV1 or codings <= _HEVC):
            raise ImageError("the image has parts of different codings, which is not supported")
        return codings == _AV1

    @property
    def is_turned(self) -> bool:
        """True if properties rotate or mirror the picture."""
        _, _, properties = self._parts[self._meta.primary]
        return any(
            kind == b"imir" or (kind == b"irot" and value != b"\0") for kind, value in properties
        )

    def to_file(self) -> bytes:
        """Return a file of the picture only."""
        numbers = {number: place for place, number in enumerate(self._parts, 1)}
        references = [
            (kind, numbers[source], [numbers[target] for target in targets])
            for kind, source, targets in self._references
        ]
        brand = b"avif" if self.is_avif else b"heic"
        return isobmff.write([*self._parts.values()], references, primary=1, brand=brand)

    def _add(self, number: int, depth: int) -> None:
        """Add an item, its parts and its alpha. Raises ImageError if they are too many."""
        self._visits += 1
        if self._visits > MOST_ITEMS or depth > MOST_DERIVATIONS:
            raise ImageError(f"the image is composed of over {MOST_ITEMS} items")
        if number not in self._parts:
            self._inspect(number)
        pixels, passes = self._costs[number]
        self._pixels += pixels
        self._passes += pixels * passes
        for unit, total, multiple in (
            ("tiles", self._pixels, MOST_TILES),
            ("slices or frames", self._passes, MOST_SLICES),
        ):
            limit = multiple * self._limits.max_image_pixels
            if total > limit:
                raise too_many_pixels(f"the image has {unit} of over {limit} pixels", self._limits)
        for part in self._inputs[number]:
            self._add(part, depth + 1)

    def _inspect(self, number: int) -> None:
        item = self._meta.items[number]
        content = self._content(item)
        properties = self._properties(item)
        self._parts[number] = item.kind, content, [*properties.items()]
        parts: list[int] = []
        self._costs[number] = 0, 0
        if item.kind in _DERIVED:
            parts = self._meta.references.get((b"dimg", number), [])
            if item.kind == b"grid":
                self._check_grid(content, len(parts))
        else:
            self._costs[number] = self._cost(item.kind, content, properties.get(b"hvcC", b""))
        alphas = self._alphas.get(number, [])
        self._inputs[number] = [*parts, *alphas]
        self._references += [(b"dimg", number, parts)] if parts else []
        self._references += [(b"auxl", alpha, [number]) for alpha in alphas]
        self._references += [(b"prem", number, alphas)] if self._is_premultiplied(number) else []

    def _content(self, item: Item) -> bytes:
        extents = tuple(item.extents)
        if extents not in self._contents:
            self._length += sum(end - start for start, end in extents)
            if self._length > 2 * len(self._file):
                raise ImageError("the image is damaged: parts of its items overlap")
            self._contents[extents] = b"".join(self._file[start:end] for start, end in extents)
        return self._contents[extents]

    def _properties(self, item: Item) -> dict[bytes, bytes]:
        """Return the properties of an item that decoders need, the first of each kind."""
        properties: dict[bytes, bytes] = {}
        for kind, value in item.properties:
            if kind == b"ispe":
                width, height = struct.unpack(">4x2I", value)
                check_size(width, height, self._limits)
            # Without ICC profiles, which do not affect the pixels here.
            if kind in _PROPERTIES and (kind != b"colr" or value.startswith(b"nclx")):
                properties.setdefault(kind, value)
        return properties

    def _cost(self, kind: bytes, content: bytes, configuration: bytes) -> tuple[int, int]:
        """Return the pixels of a coded item, and the greatest number of passes over them."""
        if kind in _AV1:
            return av1_passes(content, self._steps)
        if kind in _HEVC:
            return hevc_passes(configuration, content, self._steps)
        raise ImageError(
            f"the image is coded as {kind.decode('latin-1')!r}; supported are HEVC (hvc1) and AV1 "
            "(av01)"
        )

    def _check_grid(self, grid: bytes, parts: int) -> None:
        width, height = struct.unpack_from(">2I" if grid[1] & 1 else ">2H", grid, 4)
        check_size(width, height, self._limits)
        if parts != (grid[2] + 1) * (grid[3] + 1):
            raise ImageError(f"the image is damaged: its grid has {parts} parts")

    def _is_premultiplied(self, number: int) -> bool:
        return bool(self._alphas.get(number)) and (b"prem", number) in self._meta.references


def _is_alpha(item: Item) -> bool:
    """Return True if an auxiliary item is an alpha plane; depth and gain maps are not decoded."""
    kinds = [value for kind, value in item.properties if kind == b"auxC"]
    return any(b":auxid:1" in kind or b":alpha" in kind for kind in kinds)


@functools.cache
def heif_class() -> type[ImageFile.ImageFile]:
    """Return Pillow's plugin for HEIC, set to one thread and no auxiliary images."""
    import pi_heif

    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    plugin: type[ImageFile.ImageFile] = pi_heif.HeifImageFile
    return plugin
