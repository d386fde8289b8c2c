"""DICOM files: the first frame, as a picture of 8 bits a sample."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile

from topwork.errors import ImageError
from topwork.inputs import dicom_file
from topwork.inputs.dicom_file import integer
from topwork.inputs.dicom_grey import grey_table, palette_table
from topwork.inputs.images.jpeg import check_segments
from topwork.inputs.images.jpeg2000 import CODESTREAM, checked_codestream
from topwork.inputs.images.work import check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MOST_SCANS = 4
"""Scans of a JPEG frame: one, or one a colour."""

_BLOCK = 2**20  # pixels that are converted at a time: bounds the memory beside the frame
_ITEM = b"\xfe\xff\x00\xe0"


def open_dicom(content: bytes, spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return the picture of a DICOM file's first frame, in mode L or RGB.

    Raises ImageError, and whatever pydicom raises for damage.
    """
    # A frame of the largest size has 1 to 3 bytes a pixel, or 2 where it is deep greyscale.
    frame = open_frame(content, most_bytes=4 * limits.max_image_pixels)
    check_size(frame.width, frame.height, limits)
    return decode(frame, spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The first frame of a DICOM file, not yet decoded."""

    width: int
    height: int
    dataset: Dataset


def open_frame(content: bytes, *, most_bytes: int) -> Frame:
    """Return a DICOM file's first frame, so that its size can be looked at before it is decoded.

    ``most_bytes`` bounds what a deflated file may inflate to. Raises ImageError.
    """
    dataset = dicom_file.read(content, most_bytes=most_bytes)
    if "PixelData" not in dataset:
        raise ImageError("the DICOM has no pixels of integers, or is cut off before them")
    width, height = integer(dataset, "Columns"), integer(dataset, "Rows")
    if width < 1 or height < 1:
        raise ImageError(f"the DICOM is {width} x {height} pixels")
    return Frame(width=width, height=height, dataset=dataset)


def decode(frame: Frame, spec: PreprocessSpec) -> Image.Image:
    """Return the picture of a frame, in mode L or RGB. Raises ImageError."""
    samples, colours = _samples(frame)
    dataset = frame.dataset
    if colours in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"} and samples.ndim == 2:
        index = samples.view(f"u{samples.itemsize}")
        if colours == "PALETTE COLOR":
            table = palette_table(dataset, samples.dtype)
        else:
            counts = np.zeros(256**samples.itemsize, np.int64)
            for rows in _blocks(frame):
                counts += np.bincount(index[rows].ravel(), minlength=len(counts))
            table = grey_table(dataset, samples.dtype, counts, spec.deep_grey)
        shown = np.empty(index.shape + table.shape[1:], np.uint8)
        for rows in _blocks(frame):
            shown[rows] = table[index[rows]]
        return Image.fromarray(shown)
    if colours in {"RGB", "YBR_FULL", "YBR_FULL_422"} and samples.ndim == 3:
        return _colour(frame, samples, colours)
    raise ImageError(
        f"the DICOM's colours are {colours:.20} with {integer(dataset, 'SamplesPerPixel')} "
        "samples a pixel, which cannot be read"
    )


def _samples(frame: Frame) -> tuple[NDArray[Any], str]:
    """Return the stored samples (height, width) or (height, width, 3), and what they mean."""
    from pydicom.pixels.decoders.base import get_decoder

    dataset = frame.dataset
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    if allocated not in (1, 8, 16):
        raise ImageError(f"the DICOM has {allocated} bits a sample; 1, 8 and 16 can be read")
    highest = integer(dataset, "HighBit", stored - 1)
    if highest != stored - 1:
        raise ImageError(f"the DICOM's highest bit is {highest} of {stored} stored bits")
    syntax = dataset.file_meta.TransferSyntaxUID
    is_rgb = syntax.is_encapsulated and _check_encapsulated(frame)
    samples, properties = get_decoder(syntax).as_array(
        dataset,
        index=0,
        raw=True,
        decoding_plugin="pydicom" if syntax == dicom_file.RLE else "pillow",
    )
    colours = "RGB" if is_rgb else str(properties["photometric_interpretation"])
    return np.ascontiguousarray(samples, samples.dtype.newbyteorder("=")), colours


def _check_encapsulated(frame: Frame) -> bool:
    """Raise ImageError if decoding the first frame would take more than its size; keep only it.

    Returns whether Pillow makes RGB of it, whatever the DICOM says.
    """
    from pydicom.encaps import encapsulate, get_frame

    dataset = frame.dataset
    fragments = dataset.PixelData.count(_ITEM)
    if fragments > dicom_file.MOST_READS:
        raise ImageError(f"the DICOM's pixels are in {fragments} fragments")
    frames = integer(dataset, "NumberOfFrames", 1)
    content = get_frame(dataset.PixelData, 0, number_of_frames=frames or 1)
    syntax = dataset.file_meta.TransferSyntaxUID
    is_rgb = False
    if syntax == dicom_file.RLE:
        _check_rle(content, frame.width * frame.height)
    elif syntax in dicom_file.JPEG:
        check_segments(content)
        is_rgb = _check_frame(frame, content, syntax.name, JpegImageFile)
        scans = content.count(b"\xff\xda")
        if scans > MOST_SCANS:
            raise ImageError(f"the DICOM's frame has {scans} scans; the limit is {MOST_SCANS}")
    else:
        # Some put a JP2 header before the codestream; it does not count, and can loop pydicom.
        content = content[max(content.find(CODESTREAM), 0) :]
        checked_codestream(content)
        _check_frame(frame, content, syntax.name, Jpeg2KImageFile)
    # What was looked at is what is decoded.
    dataset.PixelData = encapsulate([content], has_bot=False)
    return is_rgb


def _check_frame(
    frame: Frame, content: bytes, name: str, kind: Callable[[io.BytesIO], Image.Image]
) -> bool:
    """Raise ImageError if a compressed frame is not as large as the DICOM says.

    Returns whether Pillow turns its colours into RGB, as it does where Adobe's marker says what
    they are; pydicom overlooks that, and would turn them again.
    """
    try:
        with kind(io.BytesIO(content)) as image:
            found, is_rgb = image.size, image.mode == "RGB" and "adobe_transform" in image.info
    except SyntaxError:
        raise ImageError(
            f"the DICOM's frame ({name}) cannot be read; JPEG of 8 bits and JPEG 2000 can be"
        ) from None
    if found != (frame.width, frame.height):
        raise ImageError(
            f"the DICOM is {frame.width} x {frame.height} pixels, its frame {found[0]} x {found[1]}"
        )
    return is_rgb


def _check_rle(content: bytes, pixels: int) -> None:
    """Raise ImageError if a segment of a frame unpacks to another size (PS3.5 annex G).

    Two bytes unpack to up to 128, which pydicom counts only when all have been.
    """
    count, *starts = struct.unpack("<16I", content[:64])
    starts = [*starts[:count], len(content)]
    if starts != sorted(starts):
        raise ImageError("the DICOM's RLE segments overlap")
    for start, end in itertools.pairwise(starts):
        at, unpacked = start, 0
        while at < end:
            code = content[at]
            if code < 128:
                at += code + 2
                unpacked += code + 1
            elif code > 128:
                at += 2
                unpacked += 257 - code
            else:
                at += 1
        if not pixels <= unpacked <= pixels + 128:  # some pad
            raise ImageError(f"the DICOM's RLE segment unpacks to {unpacked} of {pixels} bytes")


def _colour(frame: Frame, samples: NDArray[Any], colours: str) -> Image.Image:
    from pydicom.pixels.processing import convert_color_space

    if samples.dtype.kind != "u":
        raise ImageError("the DICOM has colours of signed samples")
    extra = integer(frame.dataset, "BitsStored") - 8
    if extra < 0 or (extra and colours != "RGB"):
        raise ImageError(f"the DICOM has {colours} samples of {8 + extra} bits")
    shown = np.empty(samples.shape, np.uint8)
    for rows in _blocks(frame):
        block = (samples[rows] >> extra).astype(np.uint8)
        shown[rows] = convert_color_space(block, colours, "RGB")
    return Image.fromarray(shown)


def _blocks(frame: Frame) -> Iterator[slice]:
    """Yield rows of about _BLOCK pixels."""
    step = -(-_BLOCK // frame.width)
    for start in range(0, frame.height, step):
        yield slice(start, start + step)
