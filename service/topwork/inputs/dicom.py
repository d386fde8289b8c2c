"""DICOM decoding: the first frame as an image of 8 bits per sample."""

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
from topwork.inputs.images.jpeg2000 import CODESTREAM, read_codestream
from topwork.inputs.images.work import check_size
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MOST_SCANS = 4
"""Raising it lets a JPEG frame have more scans; usual are 1, or 1 per component."""

_BLOCK = 2**20  # pixels per conversion; bounds temporary memory
_ITEM = b"\xfe\xff\x00\xe0"


def open_dicom(content: bytes, spec: PreprocessSpec, limits: InputLimits) -> Image.Image:
    """Return a DICOM file's first frame in mode L or RGB.

    Raises ImageError, and any exception of pydicom for a damaged file.
    """
    # The largest frame has 1 to 3 bytes per pixel, the rest of the file is small.
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
    """Return a DICOM file's first frame, not decoded, so that its size can be checked first.

    ``most_bytes`` bounds the inflated size of a deflated file. Raises ImageError.
    """
    dataset = dicom_file.read(content, most_bytes=most_bytes)
    if "PixelData" not in dataset:
        raise ImageError("the DICOM has no integer pixel data, or is cut off before it")
    width, height = integer(dataset, "Columns"), integer(dataset, "Rows")
    if width < 1 or height < 1:
        raise ImageError(f"the DICOM is {width} x {height} pixels")
    return Frame(width=width, height=height, dataset=dataset)


def decode(frame: Frame, spec: PreprocessSpec) -> Image.Image:
    """Return a decoded frame in mode L or RGB. Raises ImageError."""
    samples, photometric = _samples(frame)
    dataset = frame.dataset
    if photometric in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"} and samples.ndim == 2:
        index = samples.view(f"u{samples.itemsize}")
        if photometric == "PALETTE COLOR":
            table = palette_table(dataset, samples.dtype)
        else:
            counts = np.zeros(256**samples.itemsize, np.int64)
            for rows in _blocks(frame):
                counts += np.bincount(index[rows].ravel(), minlength=len(counts))
            table = grey_table(dataset, samples.dtype, counts, spec.deep_grey)
        shades = np.empty(index.shape + table.shape[1:], np.uint8)
        for rows in _blocks(frame):
            shades[rows] = table[index[rows]]
        return Image.fromarray(shades)
    if photometric in {"RGB", "YBR_FULL", "YBR_FULL_422"} and samples.ndim == 3:
        return _to_rgb(frame, samples, photometric)
    raise ImageError(
        f"the DICOM's photometric interpretation is {photometric:.20} with "
        f"{integer(dataset, 'SamplesPerPixel')} samples per pixel, which is not supported"
    )


def _samples(frame: Frame) -> tuple[NDArray[Any], str]:
    """Return samples, (height, width) or (height, width, 3), and photometric interpretation."""
    from pydicom.pixels.decoders.base import get_decoder

    dataset = frame.dataset
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    if allocated not in (1, 8, 16):
        raise ImageError(f"the DICOM has {allocated} bits per sample; 1, 8 and 16 are supported")
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
    photometric = "RGB" if is_rgb else str(properties["photometric_interpretation"])
    return np.ascontiguousarray(samples, samples.dtype.newbyteorder("=")), photometric


def _check_encapsulated(frame: Frame) -> bool:
    """Check the cost of decoding the first frame, and drop all other frames.

    Returns True if Pillow converts the frame to RGB, whatever the DICOM says. Raises ImageError.
    """
    from pydicom.encaps import encapsulate, get_frame

    dataset = frame.dataset
    fragments = dataset.PixelData.count(_ITEM)
    if fragments > dicom_file.MOST_READS:
        raise ImageError(f"the DICOM's pixel data has {fragments} fragments")
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
        # Some files have a JP2 header before the codestream; pydicom may loop on it for ever.
        content = content[max(content.find(CODESTREAM), 0) :]
        read_codestream(content)
        _check_frame(frame, content, syntax.name, Jpeg2KImageFile)
    # Decode exactly the bytes that were checked.
    dataset.PixelData = encapsulate([content], has_bot=False)
    return is_rgb


def _check_frame(
    frame: Frame, content: bytes, name: str, kind: Callable[[io.BytesIO], Image.Image]
) -> bool:
    """Raise ImageError if a compressed frame is not as large as the DICOM says.

    Returns True if Pillow converts the frame to RGB, as it does after an Adobe marker; pydicom
    ignores the marker and would convert a second time.
    """
    try:
        with kind(io.BytesIO(content)) as image:
            size, is_rgb = image.size, image.mode == "RGB" and "adobe_transform" in image.info
    except SyntaxError:
        raise ImageError(
            f"the DICOM's frame ({name}) is not supported; JPEG of 8 bits and JPEG 2000 are"
        ) from None
    if size != (frame.width, frame.height):
        raise ImageError(
            f"the DICOM is {frame.width} x {frame.height} pixels, its frame {size[0]} x {size[1]}"
        )
    return is_rgb


def _check_rle(content: bytes, pixels: int) -> None:
    """Raise ImageError if an RLE segment unpacks to a wrong size (PS3.5 annex G).

    Two bytes unpack to up to 128, and pydicom checks the size only after unpacking.
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
        if not pixels <= unpacked <= pixels + 128:  # segments may be padded
            raise ImageError(f"the DICOM's RLE segment unpacks to {unpacked} of {pixels} bytes")


def _to_rgb(frame: Frame, samples: NDArray[Any], photometric: str) -> Image.Image:
    from pydicom.pixels.processing import convert_color_space

    if samples.dtype.kind != "u":
        raise ImageError("the DICOM has signed colour samples")
    extra = integer(frame.dataset, "BitsStored") - 8
    if extra < 0 or (extra and photometric != "RGB"):
        raise ImageError(f"the DICOM has {photometric} samples of {8 + extra} bits")
    rgb = np.empty(samples.shape, np.uint8)
    for rows in _blocks(frame):
        block = (samples[rows] >> extra).astype(np.uint8)
        rgb[rows] = convert_color_space(block, photometric, "RGB")
    return Image.fromarray(rgb)


def _blocks(frame: Frame) -> Iterator[slice]:
    """Yield slices of rows, about _BLOCK pixels each."""
    step = -(-_BLOCK // frame.width)
    for start in range(0, frame.height, step):
        yield slice(start, start + step)
