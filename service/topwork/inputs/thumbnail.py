"""Thumbnail of a training image, small enough to be stored with its exemplar."""

from __future__ import annotations

import io

from PIL import Image

from topwork.inputs.image import Pixels

SIDE = 64
"""Raising it makes thumbnails sharper and larger: side in pixels, unless a model has another."""

LARGEST = 256
"""Raising it permits larger thumbnails; those of 256 pixels have about 15 KB."""


def thumbnail(pixels: Pixels, side: int = SIDE) -> bytes:
    """Return a square JPEG file with ``side`` pixels a side; equal pixels give equal bytes.

    Of SIDE pixels it has about 2 KB. It is no larger than ``pixels``, if they have more than SIDE.
    """
    side = min(side, max(SIDE, len(pixels)))
    buffer = io.BytesIO()
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX, reducing_gap=1.0)
    small.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
