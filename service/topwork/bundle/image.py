"""How an image's bytes become the backbone's input: the one path, in training and in serving."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL import _imaging as core

from topwork.bundle import dicom, grey
from topwork.bundle.limits import DEFAULT_LIMITS, Limits
from topwork.bundle.preprocess import PreprocessSpec
from topwork.errors import ImageError

Pixels = NDArray[np.uint8]
"""One preprocessed image: uint8 (crop, crop, 3), RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
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
MOST_SCANS = 30
"""Scans that a JPEG of the largest size may have; smaller ones may have more."""

_TIFF = (b"II*\0", b"MM\0*")
_FAX = {"group3", "group4", "tiff_ccitt"}

# Pillow warns of damaged metadata, with texts as varied as the damage: each would stay in memory.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow gives each image's memory back to the system and takes pages anew for the next one, which
# costs a quarter of a JPEG's decoding, and more where many threads do so. It keeps this much.
core.set_block_size(4 * 2**20)
core.set_blocks_max(32)

# What Pillow's decoders are seen to raise on damaged files, beside OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError,
            OverflowError, struct.error)  # fmt: skip


def preprocess(content: bytes, spec: PreprocessSpec, *, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Return the pixels of an encoded image as ``spec`` says.

    The first frame of an animation; upright by its EXIF orientation; transparency on white;
    greyscale and CMYK become RGB; deep greyscale keeps the upper 8 bits of its sample depth, deep
    colours of their 16; DICOM is shown in its first window; ICC profiles are ignored. Raises
    ImageError if the bytes are empty, too long, no known format, damaged or cut off, or if the
    image has too many pixels (seen before it is decoded).
    """
    if not content:
        raise ImageError("the image is empty (0 bytes)")
    if len(content) > limits.max_image_bytes:
        raise ImageError(
            f"the image is {_mib(len(content))}; the limit is {_mib(limits.max_image_bytes)}",
            reason="IMAGE_TOO_LARGE",
        )
    if dicom.is_dicom(content):
        return _preprocess_dicom(content, spec, limits)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_work(image, content, limits)
            return _preprocess(image, spec)
    except UnidentifiedImageError:
        if content.startswith(_TIFF):
            raise ImageError(
                "the image is a damaged TIFF, or one of samples that cannot be read; "
                "1, 8 and 16 bits can be"
            ) from None
        raise ImageError(
            f"the image ({len(content)} bytes) is none of {', '.join(FORMATS)}, DICOM"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(str(error), limits) from None
    except _DAMAGED as error:
        raise ImageError(f"the image is damaged or cut off: {error}") from error


def pixel_digest(pixels: Pixels) -> str:
    """Return the image digest: sha256 of the preprocessed pixels, in hexadecimal.

    Files that differ only in what the backbone never sees (container, metadata) share it.
    """
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _preprocess(image: Image.Image, spec: PreprocessSpec) -> Pixels:
    # JPEG only: decode at 1/2, 1/4 or 1/8 of the size where that is still large enough.
    image.draft(None, (spec.resize, spec.resize))
    rgb = _to_rgb(image)
    orientation = _orientation(image)
    small = _crop_and_scale(rgb, spec)
    if orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[orientation])
    return np.asarray(small, dtype=np.uint8)


def _preprocess_dicom(content: bytes, spec: PreprocessSpec, limits: Limits) -> Pixels:
    # A frame of the largest size has 1 to 3 bytes a pixel, or 2 where it is deep greyscale.
    frame = dicom.open_frame(content, most_bytes=4 * limits.max_image_pixels)
    _check_size(frame.width, frame.height, limits)
    return np.asarray(_crop_and_scale(dicom.decode(frame).convert("RGB"), spec), dtype=np.uint8)


def _crop_and_scale(rgb: Image.Image, spec: PreprocessSpec) -> Image.Image:
    # Crop, then scale: the picture of scale-then-crop for half the work. The box is symmetric, so
    # turning the small result equals turning the large source.
    side = min(rgb.size) * spec.crop / spec.resize
    left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
    return rgb.resize(
        (spec.crop, spec.crop),
        _FILTERS[spec.interpolation],
        box=(left, top, left + side, top + side),
        reducing_gap=3.0,
    )


def _orientation(image: Image.Image) -> int:
    """Return how a loaded image still has to be turned; a TIFF was turned when it was loaded."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGED:
        return 1  # damaged metadata spoils no picture


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("the image has floating-point samples; 8 or 16 bits are supported")
    if grey.is_deep(image):
        image = grey.to_eight_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _check_work(image: Image.Image, content: bytes, limits: Limits) -> None:
    """Raise ImageError for what would cost too much to decode, before it is."""
    pixels = image.width * image.height
    _check_size(image.width, image.height, limits)
    if image.format == "JPEG":
        # A progressive scan may cost no bytes, but always a pass over the whole picture.
        scans = content.count(b"\xff\xda")
        if scans * pixels > MOST_SCANS * limits.max_image_pixels:
            raise _too_many_pixels(f"the image has {scans} scans of {pixels} pixels", limits)
    if image.info.get("compression") in _FAX:
        raise ImageError("the image is a fax (CCITT), whose damage libtiff cannot tell")


def _check_size(width: int, height: int, limits: Limits) -> None:
    pixels = width * height
    if pixels > limits.max_image_pixels:
        raise _too_many_pixels(f"the image is {width} x {height} = {pixels} pixels", limits)


def _too_many_pixels(found: str, limits: Limits) -> ImageError:
    return ImageError(
        f"{found}; the limit is {limits.max_image_pixels} pixels", reason="IMAGE_TOO_LARGE"
    )


def _mib(length: int) -> str:
    return f"{math.ceil(length * 10 / 2**20) / 10:.1f} MiB"  # up: what is over looks so
