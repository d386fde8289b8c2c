"""BMP files. Pillow decodes run-length encoding in Python, so such files must be small."""

from __future__ import annotations

import io
import struct

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from topwork.errors import ImageError
from topwork.inputs.images.work import check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

MOST_RLE_BYTES, MOST_RLE_PIXELS = 2**20, 4_000_000
"""Raising them makes a run-length encoded file take longer; this many take 1 s."""


def open_bmp(content: bytes, _spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the image, not decoded yet. Raises ImageError."""
    image = BmpImageFile(io.BytesIO(content))
    check_size(*image.size, limits)
    pixels = image.width * image.height
    header, compression = struct.unpack_from("<I12xI", content, 14)
    is_rle = header >= 40 and compression in {1, 2}
    if is_rle and (len(content) > MOST_RLE_BYTES or pixels > MOST_RLE_PIXELS):
        raise ImageError(
            f"the BMP is run-length encoded and has {len(content)} bytes for {pixels} pixels; the "
            f"limits of such files are {MOST_RLE_BYTES} bytes and {MOST_RLE_PIXELS} pixels",
            reason="IMAGE_TOO_LARGE",
        )
    return image
