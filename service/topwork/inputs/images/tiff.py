"""TIFF files: the first picture, rewritten so that Pillow reads it correctly.

Pillow gets a file with a single directory of only the tags that affect pixels. It reads each colour
plane as a greyscale picture, and deep greyscale as unsigned samples with black as zero; this module
interprets the samples.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from topwork.errors import ImageError
from topwork.inputs import grey
from topwork.inputs.images.tiff_directory import LISTS, Directory, Tag, read, write
from topwork.inputs.images.work import check_passes, check_size, too_many_pixels
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

_NONE, _OLD_JPEG, _JPEG = 1, 6, 7
_FAX = {2, 3, 4, 32771}
_COMPRESSIONS = {
    _NONE, 5, _OLD_JPEG, _JPEG, 8, 32773, 32809, 32946, 34925, 50000, 50001,
}  # fmt: skip
"""None, LZW, JPEG twice, Deflate, PackBits, ThunderScan, Deflate again, LZMA, Zstandard, WebP."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _YCBCR = 0, 1, 6
_GREY = {_WHITE_IS_ZERO, _BLACK_IS_ZERO}
_MODES = {_WHITE_IS_ZERO: "L", _BLACK_IS_ZERO: "L", 2: "RGB", 5: "CMYK"}
"""Pillow's mode, by photometric interpretation."""
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_SEPARATE = 2
_SCAN = b"\xff\xda"
_NOT_ALPHA, _PREMULTIPLIED, _ALPHA = 0, 1, 2


def open_tiff(content: bytes, spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the first picture. Raises ImageError."""
    directory = read(content)
    check_size(directory.number(Tag.WIDTH), directory.number(Tag.HEIGHT), limits)
    sample_format = directory.number(Tag.SAMPLE_FORMAT, _UNSIGNED)
    if sample_format == _FLOAT:
        raise ImageError("the image has floating-point samples; 8 or 16 bits are supported")
    if sample_format == _UNDEFINED:
        directory = directory.changed({Tag.SAMPLE_FORMAT: ()})
    strips = _check_strips(content, directory, limits)
    if directory.number(Tag.SAMPLES, 1) == 1:
        directory = directory.changed({Tag.PLANAR: ()})  # has no meaning for a single plane
        return _single_channel(content, directory, spec)
    if directory.number(Tag.PLANAR, 1) == _SEPARATE:
        return _merge_planes(content, directory, strips, spec)
    if directory.number(Tag.PHOTOMETRIC, _WHITE_IS_ZERO) == _YCBCR:
        is_raw = directory.number(Tag.COMPRESSION, _NONE) == _NONE
        if is_raw and directory.numbers(Tag.YCBCR_SUBSAMPLING, 2, 2) != (1, 1):
            raise ImageError("the TIFF has uncompressed, subsampled YCbCr, which is not supported")
    return _open(content, directory)


def _single_channel(content: bytes, directory: Directory, spec: PreprocessSpec) -> Image.Image:
    """Return a picture of one sample per pixel: greyscale or palette."""
    photometric = directory.number(Tag.PHOTOMETRIC, _WHITE_IS_ZERO)
    bits, order = directory.number(Tag.BITS, 1), directory.order
    is_signed = directory.number(Tag.SAMPLE_FORMAT, _UNSIGNED) == _SIGNED
    if photometric not in _GREY or (bits <= 8 and not is_signed):
        return _open(content, directory)
    if bits not in {8, 16, 32} and (is_signed or bits != 12):
        raise ImageError(f"the TIFF has samples of {bits} bits, which is not supported")
    if bits == 32 and order == ">" and directory.number(Tag.COMPRESSION, _NONE) != _NONE:
        raise ImageError(
            "the TIFF is big-endian and compressed and has samples of 32 bits, which is not "
            "supported; save it uncompressed or little-endian"
        )
    simpler = directory.changed(
        {
            Tag.PHOTOMETRIC: (_BLACK_IS_ZERO,),
            Tag.BITS: (bits,),
            Tag.SAMPLE_FORMAT: (_SIGNED if bits == 32 else _UNSIGNED,),
        },
        order="<" if bits == 12 else order,  # packed bits have a single order
    )
    samples = np.asarray(_open(content, simpler))
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    samples = samples.view(f"{'i' if is_signed else 'u'}{samples.itemsize}")
    shades = grey.to_eight_bits(samples, spec.deep_grey, depth=min(bits, 16))
    return Image.fromarray(255 - shades if photometric == _WHITE_IS_ZERO else shades)


def _merge_planes(
    content: bytes, directory: Directory, strips: int, spec: PreprocessSpec
) -> Image.Image:
    """Return a picture that is stored as planes of ``strips`` strips each."""
    photometric = directory.number(Tag.PHOTOMETRIC, _WHITE_IS_ZERO)
    bits = {*directory.numbers(Tag.BITS, 1)}
    mode, samples = _MODES.get(photometric, ""), directory.number(Tag.SAMPLES)
    is_signed = directory.number(Tag.SAMPLE_FORMAT, _UNSIGNED) == _SIGNED
    if samples < len(mode) or not mode or is_signed or bits not in ({8}, {16}):
        raise _unsupported(directory)
    if samples > len(mode) and mode != "CMYK":
        extra = directory.number(Tag.EXTRA_SAMPLES, _ALPHA)
        mode += {_NOT_ALPHA: "", _PREMULTIPLIED: "a"}.get(extra, "A")
    planes = []
    for plane in range(len(mode)):
        own = {
            tag: numbers[plane * strips : (plane + 1) * strips]
            for tag, numbers in directory.integers.items()
            if tag in LISTS
        }
        is_colour = photometric not in _GREY or plane
        single = directory.changed(
            {
                **own,
                Tag.PHOTOMETRIC: (_BLACK_IS_ZERO if is_colour else photometric,),
                Tag.SAMPLES: (1,),
                Tag.EXTRA_SAMPLES: (),
                Tag.PLANAR: (),
            }
        )
        if is_colour and bits == {16}:
            upper = np.asarray(_open(content, single)).astype(np.uint16) >> 8
            planes.append(Image.fromarray(upper.astype(np.uint8)))
        else:
            planes.append(_single_channel(content, single, spec).convert("L"))
    merged = Image.merge(mode, planes) if len(mode) > 1 else planes[0]
    return merged.convert(mode.upper()) if mode.endswith("a") else merged


def _open(content: bytes, directory: Directory) -> Image.Image:
    try:
        return TiffImageFile(io.BytesIO(write(content, directory)))
    except SyntaxError as error:  # Pillow does not know this sample layout
        raise _unsupported(directory) from error


def _unsupported(directory: Directory) -> ImageError:
    bits = ", ".join(map(str, directory.numbers(Tag.BITS, 1)[:8]))
    photometric = directory.number(Tag.PHOTOMETRIC, _WHITE_IS_ZERO)
    planes = ", in planes" if directory.number(Tag.PLANAR, 1) == _SEPARATE else ""
    return ImageError(
        f"the TIFF has samples of {bits} bits{planes}, photometric interpretation {photometric}, "
        "which is not supported"
    )


def _check_strips(content: bytes, directory: Directory, limits: InputLimits) -> int:
    """Return the number of strips or tiles of a plane. Raises ImageError if they cost too much."""
    compression = directory.number(Tag.COMPRESSION, _NONE)
    if compression in _FAX:  # libtiff reports no damage in these
        raise ImageError("the TIFF has fax compression (CCITT), which is not supported")
    if compression not in _COMPRESSIONS:
        raise ImageError(f"the TIFF's compression is {compression}, which is not supported")
    width, height = directory.number(Tag.WIDTH), directory.number(Tag.HEIGHT)
    if Tag.TILE_WIDTH in directory.integers:
        wide, high = directory.number(Tag.TILE_WIDTH), directory.number(Tag.TILE_HEIGHT)
        lists = Tag.TILE_OFFSETS, Tag.TILE_BYTES
    else:
        wide, high = width, min(directory.number(Tag.ROWS_PER_STRIP, height), height)
        lists = Tag.STRIP_OFFSETS, Tag.STRIP_BYTES
    if min(width, height, wide, high) < 1:
        raise ImageError(f"the TIFF is damaged: {width} x {height} pixels, {wide} x {high} a strip")
    check_size(wide, high, limits)
    count = math.ceil(width / wide) * math.ceil(height / high)
    if count * wide * high > 2 * limits.max_image_pixels:  # edge tiles may exceed the image
        raise too_many_pixels(f"the TIFF has {count} tiles of {wide} x {high} pixels", limits)
    passes = count
    if compression == _OLD_JPEG:  # strips are parts of a single JPEG stream
        passes *= max(1, content.count(_SCAN))
    else:
        is_separate = directory.number(Tag.PLANAR, 1) == _SEPARATE
        needed = count * (directory.number(Tag.SAMPLES, 1) if is_separate else 1)
        if (present := len(directory.numbers(lists[0]))) < needed:
            raise ImageError(f"the TIFF is damaged: it has {present} of {needed} strips")
    if compression == _JPEG:  # each strip is a JPEG stream
        offsets, lengths = (directory.numbers(tag) for tag in lists)
        lengths = tuple(length or len(content) for length in lengths)  # libtiff guesses if 0
        if sum(lengths) > 2 * len(content):
            raise ImageError("the TIFF is damaged: its strips overlap")
        passes = sum(
            max(1, content.count(_SCAN, offset, offset + length))
            for offset, length in zip(offsets, lengths, strict=True)
        )
    check_passes(
        f"the TIFF has {passes} scans of {wide} x {high} pixels", passes * wide * high, limits
    )
    return count
