"""Image decoding and preprocessing: from bytes to the backbone's input, in training and serving."""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from topwork.errors import ImageError
from topwork.inputs import grey
from topwork.inputs.images.openers import OPENERS
from topwork.inputs.images.signatures import READABLE, recognise
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import DEFAULT_LIMITS, InputLimits

T = TypeVar("T")

Pixels = NDArray[np.uint8]
"""One preprocessed image: uint8 (crop, crop, 3), RGB."""

Region = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an upright image, in fractions of its width, height."""

WHOLE: Region = (0.0, 0.0, 1.0, 1.0)

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {5, 6, 7, 8}
"""Orientations that exchange width and height."""

# Exceptions that decoders were seen to raise on damaged files; others are logged.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError,
           OverflowError, RuntimeError, struct.error)  # fmt: skip

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Preprocessed image."""

    pixels: Pixels
    region: Region
    """The part of the upright image that ``pixels`` show."""


def preprocess(
    content: bytes, spec: PreprocessSpec, *, limits: InputLimits = DEFAULT_LIMITS
) -> Pixels:
    """Return the pixels of an encoded image; see ``prepare``."""
    return prepare(content, spec, limits=limits).pixels


def prepare(
    content: bytes, spec: PreprocessSpec, *, limits: InputLimits = DEFAULT_LIMITS
) -> Prepared:
    """Return the pixels of an encoded image, decoded, upright, cropped and scaled by ``spec``.

    An animation gives its first frame. The EXIF orientation is applied, ICC profiles are ignored.
    Transparent parts become white; greyscale and CMYK become RGB; deep greyscale is mapped to 8
    bits, 16-bit colours to their upper 8; DICOM uses its first window. Raises ImageError if the
    bytes are empty, too long, of an unsupported format, damaged or cut off, or, before decoding, if
    decoding would cost too much. All decoder exceptions but MemoryError become ImageError.
    """
    return _decode(content, spec, limits, lambda image: _prepare(image, spec))


def upright(content: bytes, side: int, *, limits: InputLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return the whole image in RGB, upright, with a long side of at most ``side`` pixels.

    Raises ImageError as ``prepare`` does.
    """
    spec = PreprocessSpec(resize=side, crop=side, deep_grey="percentiles")

    def convert(image: Image.Image) -> Image.Image:
        opaque, orientation = _to_opaque(image, spec), _orientation(image)
        small = opaque.copy()
        small.thumbnail((side, side))
        if orientation in _UPRIGHT:
            small = small.transpose(_UPRIGHT[orientation])
        return small.convert("RGB")

    return _decode(content, spec, limits, convert)


def _decode(
    content: bytes,
    spec: PreprocessSpec,
    limits: InputLimits,
    convert: Callable[[Image.Image], T],
) -> T:
    """Return the conversion of an image that is open. Raises ImageError as ``prepare`` does."""
    if not content:
        raise ImageError("the image is empty (0 bytes)")
    if len(content) > limits.max_image_bytes:
        raise ImageError(
            f"the image is {_mib(len(content))}; the limit is {_mib(limits.max_image_bytes)}",
            reason="IMAGE_TOO_LARGE",
        )
    name = recognise(content)
    if name is None:
        raise ImageError(
            f"the image ({len(content)} bytes) has an unknown format; "
            f"supported are {', '.join(READABLE)}"
        )
    if name not in OPENERS:
        raise ImageError(f"the image is {name}; supported are {', '.join(READABLE)}")
    try:
        with OPENERS[name](content, spec, limits) as image:
            return convert(image)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # above Pillow's own limit
        raise ImageError(f"the {name} is too large: {error}", reason="IMAGE_TOO_LARGE") from None
    except Exception as error:
        if not isinstance(error, _DAMAGE):
            digest = hashlib.sha256(content).hexdigest()
            _LOG.warning("%s from the decoder of %s %s", type(error).__name__, name, digest)
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"the {name} ({len(content)} bytes) is damaged or cut off: {cause:.200}"
        ) from error


def pixel_digest(pixels: Pixels) -> str:
    """Return the image digest: sha256 of the preprocessed pixels, in hexadecimal.

    Files that differ only in container or metadata have the same digest.
    """
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _prepare(image: Image.Image, spec: PreprocessSpec) -> Prepared:
    opaque = _to_opaque(image, spec)
    orientation = _orientation(image)
    # Crop, then scale: the result of scale-then-crop for half the work. The box is symmetric, so
    # rotating the small result equals rotating the large source.
    side = min(opaque.size) * spec.crop / spec.resize
    left, top = (opaque.width - side) / 2, (opaque.height - side) / 2
    small = opaque.resize(
        (spec.crop, spec.crop),
        _FILTERS[spec.interpolation],
        box=(left, top, left + side, top + side),
        reducing_gap=3.0,
    )
    x, y = left / opaque.width, top / opaque.height
    if orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[orientation])
    if orientation in _SIDEWAYS:
        x, y = y, x
    if small.mode == "L":
        small = small.convert("RGB")
    return Prepared(np.asarray(small, dtype=np.uint8), (x, y, 1 - x, 1 - y))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation yet to be applied; loading applies that of TIFF and HEIF."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return 1  # damaged metadata does not make the image unreadable


def _to_opaque(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Return the whole image in mode L or RGB, if possible without a copy.

    Greyscale becomes RGB after scaling: the same bytes for a third of the work.
    """
    image.load()  # may change the size
    if image.mode == "I" or image.mode.startswith("I;16"):
        transparent = image.info.get("transparency")
        samples = np.asarray(image)
        image = Image.fromarray(
            grey.to_eight_bits(samples, spec.deep_grey, transparent=transparent)
        )
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode in {"L", "RGB"} else image.convert("RGB")


def _mib(length: int) -> str:
    # Rounded up, so that a length above the limit looks so.
    return f"{math.ceil(length * 10 / 2**20) / 10:.1f} MiB"
