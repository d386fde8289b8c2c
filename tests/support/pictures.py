"""Generated pictures, as encoded files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {
    "amber": (230, 160, 20),
    "blue": (30, 60, 220),
    "crimson": (210, 20, 60),
    "green": (30, 170, 60),
    "violet": (140, 40, 200),
    "white": (235, 235, 235),
    "zircon": (20, 200, 220),
}
"""One colour a label; the tiny backbone can tell them apart."""


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return ``image`` as a file's bytes, in one of Pillow's formats or as HEIF."""
    if kind == "HEIF":
        from support.heifs import heic

        return heic(image, **options)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(label: str, index: int, *, size: tuple[int, int] = (40, 32)) -> bytes:
    """Return a noisy picture (PNG) in the colour of ``label``, different for each index."""
    rng = np.random.default_rng([sorted(COLOURS).index(label), index])
    width, height = size
    noise = rng.normal(0, 60, (height, width, 3)) + rng.normal(0, 25, 3)
    pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
    return encode(Image.fromarray(pixels))


def pictures(label: str, count: int, *, start: int = 0) -> list[bytes]:
    """Return ``count`` pictures of ``label``, the first with index ``start``."""
    return [picture(label, index) for index in range(start, start + count)]
