"""Netpbm files: portable bitmaps, greymaps and pixmaps (PBM, PGM, PPM), plain and raw (P1 to P6).

Decoded with NumPy, because Pillow decodes most of them number by number in Python.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topwork.errors import ImageError
from topwork.inputs import grey
from topwork.inputs.images.work import check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

MOST_HEADER_BYTES = 2**16
"""Raising it lets more spaces and comments precede the samples; each takes 150 bytes of memory."""
MOST_COMMENTS = 10_000
"""Raising it allows more comments between plain samples."""

_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])"
_NUMBER = _SPACE + rb"+(\d{1,10})"
_HEADER = re.compile(rb"P([1-6])" + _NUMBER + _NUMBER)
_MAXIMUM = re.compile(_NUMBER)
_COMMENT = re.compile(rb"#[^\r\n]*")
_WHITE = b" \t\n\v\f\r"


def open_pnm(content: bytes, spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the decoded image in mode 1, L or RGB. Raises ImageError."""
    header = _HEADER.match(content, 0, MOST_HEADER_BYTES)
    if header is None:
        raise ImageError("the PNM is damaged or cut off: its header has no size")
    kind, width, height = int(header[1]), int(header[2]), int(header[3])
    check_size(width, height, limits)
    shape = (height, width, 3) if kind in {3, 6} else (height, width)
    if kind in {1, 4}:
        return Image.fromarray(255 * (1 - _bits(content[header.end() :], kind, shape)))
    match = _MAXIMUM.match(content, header.end(), MOST_HEADER_BYTES)
    maximum = int(match[1]) if match else 0
    if match is None or not 0 < maximum < 2**16:
        raise ImageError(f"the PNM is damaged: its header's largest sample is {maximum}")
    samples = _samples(content[match.end() :], kind, shape, maximum)
    if maximum > 255 and kind in {2, 5}:
        depth = maximum.bit_length()
        return Image.fromarray(grey.to_eight_bits(samples, spec.deep_grey, depth=depth))
    table = np.rint(np.arange(2**16).clip(max=maximum) * (255 / maximum)).astype(np.uint8)
    return Image.fromarray(table[samples])


def _bits(content: bytes, kind: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the bits of a bitmap, 1 for black."""
    height, width = shape
    if kind == 1:
        digits = _strip_comments(content).translate(None, _WHITE)
        _check_length(len(digits), height * width)
        bits = np.frombuffer(digits, np.uint8, height * width) - ord("0")
        if bits.max() > 1:
            raise ImageError("the PNM is damaged: a bitmap has other digits than 0 and 1")
        return bits.reshape(shape)
    stride = -(-width // 8)
    _check_length(len(content) - 1, height * stride)
    packed = np.frombuffer(content, np.uint8, height * stride, 1).reshape(height, stride)
    return np.unpackbits(packed, axis=1, count=width)


def _samples(content: bytes, kind: int, shape: tuple[int, ...], maximum: int) -> NDArray[Any]:
    """Return the samples of a greymap or pixmap."""
    count = math.prod(shape)
    if kind in {2, 3}:
        text = _strip_comments(content)
        _check_length((len(text) + 1) // 2, count)
        samples = np.fromstring(text, np.int64, count, sep=" ")
        if samples.min() < 0 or samples.max() > maximum:
            raise ImageError(f"the PNM is damaged: a sample is not within 0 to {maximum}")
        return np.asarray(samples, np.uint16).reshape(shape)
    dtype = np.dtype(np.uint8 if maximum < 256 else ">u2")
    _check_length(len(content) - 1, count * dtype.itemsize)
    return np.frombuffer(content, dtype, count, 1).reshape(shape)


def _strip_comments(content: bytes) -> bytes:
    if content.count(b"#") > MOST_COMMENTS:
        raise ImageError(f"the PNM has over {MOST_COMMENTS} comments")
    return _COMMENT.sub(b" ", content)


def _check_length(length: int, needed: int) -> None:
    if length < needed:
        raise ImageError(f"the PNM is cut off: it has {max(length, 0)} of {needed} bytes")
