"""HEIC and AVIF files made on the spot: sound ones, and ones that lie about what is in them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import pillow_heif
from PIL import Image

from topwork.inputs.images import isobmff
from topwork.inputs.images.isobmff import ImageItem, Reference
from topwork.inputs.images.work import Steps


def heic(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    """Return a HEIC file of ``image``, which its boxes and its EXIF say how to turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = pillow_heif.from_pillow(image)
    file.info["exif"] = exif.tobytes()
    return _saved(file, **options)


def deep_heic(mode: str, size: tuple[int, int], samples: bytes) -> bytes:
    """Return a HEIC file of 10 bits a sample, of samples of 16 bits, such as in mode RGB;16."""
    return _saved(pillow_heif.from_bytes(mode, size, samples))


def _saved(file: pillow_heif.HeifFile, **options: Any) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer, **{"quality": 95, "chroma": 444, **options})
    return buffer.getvalue()


def coded(file: bytes) -> ImageItem:
    """Return the kind, the content and the properties of a file's primary item."""
    meta = isobmff.read(file, Steps())
    item = meta.items[meta.primary]
    content = b"".join(file[start:end] for start, end in item.extents)
    return item.kind, content, item.properties


def assembled(
    items: Sequence[ImageItem], references: Sequence[Reference] = (), *, primary: int = 1
) -> bytes:
    """Return a file of items, numbered from 1: the kind, content and properties of each."""
    brand = b"avif" if items[primary - 1][0] == b"av01" else b"heic"
    return isobmff.write(items, references, primary=primary, brand=brand)


def grid(tile: bytes, columns: int, rows: int, size: tuple[int, int]) -> bytes:
    """Return a file whose picture is a grid of the primary item of ``tile``, again and again."""
    count = columns * rows
    payload = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    properties = [(b"ispe", struct.pack(">III", 0, *size))]
    return assembled(
        [*[coded(tile)] * count, (b"grid", payload, properties)],
        [(b"dimg", count + 1, list(range(1, count + 1)))],
        primary=count + 1,
    )
