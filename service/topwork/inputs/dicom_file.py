"""Bounded reading of the DICOM elements that determine the pixels.

pydicom builds an object for each of any number of elements and sequence items, and inflates any
number of bytes. So it reads from a file that counts reads, and only the pixels and a few short
elements; no patient data.
"""

from __future__ import annotations

import io
import logging
import math
import zlib
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset

MOST_READS = 200_000
"""Raising it lets a file have more elements and sequence items, each of one to four reads."""
MOST_BYTES = 2**17
"""Raising it allows longer values except pixels; a look-up table has up to 65,536 x 2 bytes."""

# Transfer syntaxes: PS3.6, table A-1.
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_READABLE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, RLE, *JPEG, *JPEG_2000)

_PIXELS = "PixelData"
_SEQUENCES = (
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "ModalityLUTSequence",
    "VOILUTSequence",
)
_VALUES = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "LUTDescriptor",
    "LUTData",
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
)


def read(content: bytes, *, most_bytes: int) -> Dataset:
    """Return the image elements of a DICOM file, with its transfer syntax in ``file_meta``.

    A deflated file is inflated, to ``most_bytes`` at most. Raises ImageError if pydicom is missing,
    for unsupported transfer syntaxes and for too many or too long elements; and any exception of
    pydicom for a damaged file.
    """
    _import_pydicom()
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag
    from pydicom.uid import UID

    file = _CountedFile(content)
    file.seek(132)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag >> 16 != 2,
        specific_tags=[Tag("TransferSyntaxUID")],
    )
    if not meta.get("TransferSyntaxUID"):
        raise ImageError("the DICOM has no transfer syntax")
    syntax = UID(str(meta.TransferSyntaxUID)[:64])
    if syntax not in _READABLE:
        raise ImageError(
            f"the DICOM's transfer syntax is {syntax.name} ({syntax}); supported are "
            "uncompressed, deflated, RLE, JPEG of 8 bits and JPEG 2000"
        )
    if syntax == DEFLATED:
        file = _CountedFile(_inflate(content[file.tell() :], most_bytes))
        syntax = UID(EXPLICIT)
    try:
        elements = read_dataset(
            file,
            is_implicit_VR=syntax == IMPLICIT,
            is_little_endian=syntax != BIG_ENDIAN,
            specific_tags=[Tag(keyword) for keyword in (*_VALUES, *_SEQUENCES, _PIXELS)],
        )
    except OSError:  # pydicom converts any error within a sequence to OSError
        file.check()
        raise
    dataset = _image_elements(elements)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def first_item(dataset: Dataset, keyword: str) -> Dataset | None:
    """Return the image elements of a sequence's first item, None if it has no item."""
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_sequence_item

    element = dataset.get_item(keyword)
    if element is None:
        return None
    if not isinstance(element, RawDataElement):  # of undefined length, so it is parsed already
        return _image_elements(element.value[0])
    item = read_sequence_item(
        _CountedFile(element.value or b""),
        is_implicit_VR=element.is_implicit_VR,
        is_little_endian=element.is_little_endian,
        encoding="iso8859",
    )
    return None if item is None else _image_elements(item)


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's first value, None if empty or absent. Raises ImageError if not finite."""
    value = dataset.get(keyword)
    if isinstance(value, MutableSequence):
        value = value[0]
    if value is None or value == "":
        return None
    finite = float(value)
    if not math.isfinite(finite):
        raise ImageError(f"the DICOM's {keyword} is {finite}")
    return finite


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Return an element's first value or the default. Raises ImageError if both are missing."""
    value = number(dataset, keyword)
    if value is None:
        value = default
    if value is None:
        raise ImageError(f"the DICOM has no {keyword}")
    return int(value)


def raw(dataset: Dataset, keyword: str) -> RawDataElement | None:
    """Return an element with an unparsed value, None if there is no such element."""
    from pydicom.dataelem import RawDataElement

    element = dataset.get_item(keyword)
    return element if isinstance(element, RawDataElement) else None


def words(element: RawDataElement, size: int = 2) -> NDArray[Any]:
    """Return an element's bytes as unsigned integers of ``size`` bytes, without an odd last."""
    order = "<" if element.is_little_endian else ">"
    content = element.value or b""
    return np.frombuffer(content[: len(content) // size * size], f"{order}u{size}")


class _CountedFile(io.BytesIO):
    """A file that raises ImageError after MOST_READS reads."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        self.check()
        return super().read(size)

    def check(self) -> None:
        if self.reads > MOST_READS:
            raise ImageError(f"the DICOM has too many elements: over {MOST_READS} reads of it")


def _import_pydicom() -> None:
    try:
        import pydicom  # noqa: F401 - checks that the extra is installed
    except ImportError:
        raise ImageError(
            "the image is DICOM, which needs pydicom: pip install 'topwork[dicom]'"
        ) from None
    # pydicom logs its warnings as well.
    logging.getLogger("pydicom").propagate = False


def _inflate(deflated: bytes, most_bytes: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(deflated, most_bytes)
    if not inflater.eof:
        if len(inflated) == most_bytes:
            raise ImageError(
                f"the DICOM inflates to more than {most_bytes} bytes", reason="IMAGE_TOO_LARGE"
            )
        raise ImageError("the DICOM's deflated data is cut off")
    return inflated


def _image_elements(dataset: Dataset) -> Dataset:
    """Return the elements with a value that determine the pixels, values unparsed."""
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset

    elements: dict[Any, Any] = {}
    for keyword in (*_VALUES, *_SEQUENCES, _PIXELS):
        element = dataset.get_item(keyword)
        if element is None or not element.value:
            continue
        if keyword not in _SEQUENCES and (
            not isinstance(element, RawDataElement) or element.VR == "SQ"
        ):
            raise ImageError(f"the DICOM's {keyword} is a sequence")
        if keyword in _VALUES and len(element.value) > MOST_BYTES:
            raise ImageError(f"the DICOM's {keyword} has {len(element.value)} bytes")
        elements[element.tag] = element
    return Dataset(elements)
