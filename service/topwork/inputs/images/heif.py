"""HEIF and AVIF files: the primary item, if what it takes to decode it is bounded by its pixels.

A file may claim few pixels and have many coded ones; it may refer to one tile a thousand times; a
coded tile may be a video of which one frame is shown. So coded sizes and frames are counted first.
Decoders get a file of what they need alone: metadata, which may be compressed a lot, or damaged,
thumbnails and further pictures are left out.
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
"""Raising it lets a picture be made of more items, which may be one that repeats."""
MOST_TILES = 3
"""Coded pixels that all tiles of a picture and of its alpha may have, in pixels of the largest one.

Raising it makes a small file's decoding cost more: HEVC takes 15 to 150 ns a pixel.
"""
MOST_SLICES = 8
"""The same where each slice or frame, which may cover its tile or a part of it, counts anew."""
MOST_DERIVATIONS = 3
"""Raising it lets pictures be derived from derived ones more often in a row."""

_HEVC, _AV1 = {b"hvc1", b"hev1"}, {b"av01"}
_DERIVED = {b"grid", b"iden"}
_PROPERTIES = {
    b"ispe", b"hvcC", b"av1C", b"pixi", b"colr", b"auxC", b"irot", b"imir", b"clap",
    b"a1op", b"a1lx", b"lsel",
}  # fmt: skip
"""What decoders look at."""

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a thread a core already


def open_heif(content: bytes, _spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the primary picture, not decoded yet, whichever of the two codings it has.

    AVIF's is to be turned by its EXIF orientation, which Pillow makes of the item's properties;
    HEIF's is upright when it is decoded; ``info["turned"]`` says whether that turns it. EXIF itself
    is ignored, as ISO/IEC 23008-12 has it. Raises ImageError.
    """
    steps = Steps()
    picture = _Picture(content, isobmff.read(content, steps), limits, steps)
    file = io.BytesIO(picture.written())
    plugin = AvifImagePlugin.AvifImageFile if picture.is_avif else heif_class()
    image: ImageFile.ImageFile = plugin(file)
    image.info["turned"] = picture.is_turned
    check_size(*image.size, limits)
    return image


class _Picture:
    """An item and all that it is made of, with what it takes to decode them."""

    def __init__(self, file: bytes, meta: Meta, limits: InputLimits, steps: Steps) -> None:
        self._file = file
        self._meta = meta
        self._limits = limits
        self._steps = steps
        self._parts: dict[int, ImageItem] = {}
        self._references: list[tuple[bytes, int, list[int]]] = []
        self._made_of: dict[int, list[int]] = {}
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
        """Whether it is coded as AV1. Raises ImageError if it is coded in two ways."""
        codings = {kind for kind, _, _ in self._parts.values()} - _DERIVED
        if not (codings <= _AV1 or codings <= _HEVC):
            raise ImageError("the image has parts of different codings, which is not read")
        return codings == _AV1

    @property
    def is_turned(self) -> bool:
        """Whether it is to be rotated or mirrored."""
        _, _, properties = self._parts[self._meta.primary]
        return any(
            kind == b"imir" or (kind == b"irot" and value != b"\0") for kind, value in properties
        )

    def written(self) -> bytes:
        """Return a file of the picture alone."""
        numbers = {number: place for place, number in enumerate(self._parts, 1)}
        references = [
            (kind, numbers[source], [numbers[target] for target in targets])
            for kind, source, targets in self._references
        ]
        brand = b"avif" if self.is_avif else b"heic"
        return isobmff.written([*self._parts.values()], references, primary=1, brand=brand)

    def _add(self, number: int, depth: int) -> None:
        """Add an item, what it is made of, and its alpha. Raises ImageError if that has no end."""
        self._visits += 1
        if self._visits > MOST_ITEMS or depth > MOST_DERIVATIONS:
            raise ImageError(f"the image is made of over {MOST_ITEMS} others")
        if number not in self._parts:
            self._look_at(number)
        pixels, passes = self._costs[number]
        self._pixels += pixels
        self._passes += pixels * passes
        for what, found, most in (
            ("tiles", self._pixels, MOST_TILES),
            ("slices or frames", self._passes, MOST_SLICES),
        ):
            if found > most * self._limits.max_image_pixels:
                over = most * self._limits.max_image_pixels
                raise too_many_pixels(f"the image has {what} of over {over} pixels", self._limits)
        for part in self._made_of[number]:
            self._add(part, depth + 1)

    def _look_at(self, number: int) -> None:
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
        self._made_of[number] = [*parts, *alphas]
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
        """Return what decoders need of an item's properties, the first of each kind."""
        found: dict[bytes, bytes] = {}
        for kind, value in item.properties:
            if kind == b"ispe":
                width, height = struct.unpack(">4x2I", value)
                check_size(width, height, self._limits)
            # Of colours only the code points: an ICC profile changes no pixels here.
            if kind in _PROPERTIES and (kind != b"colr" or value.startswith(b"nclx")):
                found.setdefault(kind, value)
        return found

    def _cost(self, kind: bytes, content: bytes, configuration: bytes) -> tuple[int, int]:
        """Return how many pixels a coded item has, and how often they are decoded, at most."""
        if kind in _AV1:
            return av1_passes(content, self._steps)
        if kind in _HEVC:
            return hevc_passes(configuration, content, self._steps)
        raise ImageError(
            f"the image is coded as {kind.decode('latin-1')!r}, which is not read; HEVC (hvc1) "
            "and AV1 (av01) are"
        )

    def _check_grid(self, grid: bytes, parts: int) -> None:
        width, height = struct.unpack_from(">2I" if grid[1] & 1 else ">2H", grid, 4)
        check_size(width, height, self._limits)
        if parts != (grid[2] + 1) * (grid[3] + 1):
            raise ImageError(f"the image is damaged: its grid has {parts} parts")

    def _is_premultiplied(self, number: int) -> bool:
        return bool(self._alphas.get(number)) and (b"prem", number) in self._meta.references


def _is_alpha(item: Item) -> bool:
    """Return whether an auxiliary item is decoded, which depth and gain maps are not."""
    kinds = [value for kind, value in item.properties if kind == b"auxC"]
    return any(b":auxid:1" in kind or b":alpha" in kind for kind in kinds)


@functools.cache
def heif_class() -> type[ImageFile.ImageFile]:
    """Return Pillow's plugin for HEIC; it decodes a picture in one thread, and nothing else."""
    import pi_heif

    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    found: type[ImageFile.ImageFile] = pi_heif.HeifImageFile
    return found
