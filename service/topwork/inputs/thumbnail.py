"""Thumbnail of a training image, small enough to be stored with its exemplar."""

from __future__ import annotations

import io

from PIL import Image

from topwork.inputs.image import Pixels

SIDE = 64
"""Raising it makes thumbnails sharper and larger: side in pixels."""


def thumbnail(pixels: Pixels) -> bytes:
    """Return a JPEG file of SIDE x SIDE pixels, about 2 KB; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    small.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
