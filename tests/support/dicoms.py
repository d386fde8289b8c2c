"""DICOM files made on the spot, without a library: sound ones and hostile ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.pictures import encode

UNCOMPRESSED = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4.50"
JPEG_2000 = "1.2.840.10008.1.2.4.90"

PIXELS = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF

Elements = dict[int, tuple[str, Any]]
"""Value representation and value of DICOM elements, by tag; a sequence is a list of Elements."""


def dicom(
    samples: NDArray[Any],
    more: Elements | None = None,
    *,
    syntax: str = UNCOMPRESSED,
    colours: str = "MONOCHROME2",
    frames: Sequence[bytes] = (),
    body: bytes = b"",
) -> bytes:
    """Return a DICOM file of integer samples (height, width) or (height, width, 3).

    ``more`` adds elements, replaces them, or takes them away (None as the value). ``frames`` are
    the compressed frames of an encapsulated transfer syntax. ``body`` is put in front of it all.
    """
    bits = 8 * samples.itemsize
    pixels = samples.astype(
        samples.dtype.newbyteorder(">" if syntax == BIG_ENDIAN else "<")
    ).tobytes()
    if frames:
        pixels = b"".join(item(frame) for frame in (b"", *frames)) + _delimiter(_SEQUENCE_END)
    elements: Elements = {
        0x00280002: ("US", [samples.shape[2] if samples.ndim == 3 else 1]),
        0x00280004: ("CS", colours),
        0x00280006: ("US", [0]),
        0x00280008: ("IS", str(max(1, len(frames)))),
        0x00280010: ("US", [samples.shape[0]]),
        0x00280011: ("US", [samples.shape[1]]),
        0x00280100: ("US", [bits]),
        0x00280101: ("US", [bits]),
        0x00280103: ("US", [int(samples.dtype.kind == "i")]),
        PIXELS: ("OB" if frames or bits == 8 else "OW", pixels),
        **(more or {}),
    }
    content = body + b"".join(
        element(tag, vr, value, syntax=syntax, endless=tag == PIXELS and bool(frames))
        for tag, (vr, value) in sorted(elements.items())
        if value is not None
    )
    if syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-15)
        content = deflater.compress(content) + deflater.flush()
    return dicom_header(syntax) + content


def dicom_header(syntax: str) -> bytes:
    """Return how a DICOM file of a transfer syntax begins."""
    meta = element(0x00020010, "UI", syntax)
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta


def element(
    tag: int, vr: str, value: Any, *, syntax: str = UNCOMPRESSED, endless: bool = False
) -> bytes:
    """Return one DICOM element; ``endless`` leaves its length undefined."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    content: bytes
    if vr == "SQ":
        content = b"".join(
            item(b"".join(element(*one, syntax=syntax) for one in flat(items)), order=order)
            for items in value
        )
    elif isinstance(value, list):
        content = struct.pack(f"{order}{len(value)}{'h' if vr == 'SS' else 'H'}", *value)
    elif isinstance(value, str):
        content = value.encode()
    else:
        content = value
    content += b"\0" * (len(content) % 2)
    length = _UNDEFINED if endless else len(content)
    if syntax == IMPLICIT:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + content
    start = struct.pack(f"{order}HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in {"OB", "OW", "SQ", "UN"}:
        return start + struct.pack(f"{order}HI", 0, length) + content
    return start + struct.pack(f"{order}H", length) + content


def flat(elements: Elements) -> list[tuple[int, str, Any]]:
    """Return elements as (tag, value representation, value), by tag."""
    return [(tag, vr, value) for tag, (vr, value) in sorted(elements.items())]


def item(content: bytes, *, order: str = "<") -> bytes:
    """Return one item of a DICOM sequence, or one fragment of encapsulated pixels."""
    content += b"\0" * (len(content) % 2)
    return struct.pack(f"{order}HHI", _ITEM >> 16, _ITEM & 0xFFFF, len(content)) + content


def rle_frame(*segments: bytes) -> bytes:
    """Return an RLE frame of packed segments (PS3.5 annex G)."""
    starts = [64 + sum(map(len, segments[:index])) for index in range(len(segments))]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(
        segments
    )


def hostile_dicoms() -> dict[str, tuple[bytes, str]]:
    """Return DICOM files that cost much to whoever believes them, and what gives them away."""
    small = np.zeros((8, 8), np.uint8)
    sequence = element(0x00081140, "SQ", [], endless=True)
    endless_item = _delimiter(_ITEM, _UNDEFINED)
    deflater = zlib.compressobj(wbits=-15)
    zeros = deflater.compress(bytes(2**20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    large = Image.new("L", (3_000, 3_000))
    small_jpeg = encode(Image.new("L", (8, 8)), "JPEG")
    scan = small_jpeg.index(b"\xff\xda")
    runs = b"\x81\0" * 2**17
    segments = struct.pack("<HHH", 0, 1, 1) + struct.pack("<HHHH", 2, 60_000, 0, 0) * 500
    segmented: Elements = {0x00281221 + n: ("OW", segments) for n in range(3)}
    loop = (endless_item + _delimiter(0x00283010, _UNDEFINED)) * 50_000
    far = item(struct.pack("<I", 2**31)) + item(bytes(64)) + _delimiter(_SEQUENCE_END)
    return {
        "many elements": (
            dicom(small, body=element(0x00090010, "US", [1]) * 30_000),
            "too many elements",
        ),
        "many items": (
            dicom(small, body=sequence + item(b"") * 30_000 + _delimiter(_SEQUENCE_END)),
            "too many elements",
        ),
        "sequences in sequences": (
            dicom(small, body=(sequence + endless_item) * 50_000),
            "recursion|No tag to read",
        ),
        "sequences in a sequence that matters": (
            dicom(small, {0x00283010: ("UN", loop)}),
            "recursion|No tag to read",
        ),
        "a long number": (
            dicom(
                small,
                {0x00281050: ("DS", "1\\" * 500_000), 0x00281051: ("DS", "1")},
                syntax=IMPLICIT,
            ),
            "WindowCenter has 1000000 bytes",
        ),
        "pixels that are a sequence": (
            dicom(small, {PIXELS: ("SQ", [{}] * 30_000)}),
            "PixelData is a sequence",
        ),
        "many fragments": (
            dicom(small, syntax=RLE, frames=[b""] * 30_000),
            "too many elements",
        ),
        "many fragments in one": (
            dicom(small, {PIXELS: ("OB", item(b"") * 30_000)}, syntax=RLE),
            "has 30000 fragments",
        ),
        "a deflated bomb": (dicom_header(DEFLATED) + zeros * 500, "inflates to more than 16000000"),
        "an RLE bomb": (
            dicom(small, syntax=RLE, frames=[rle_frame(runs)]),
            "unpacks to 16777216 of 64 bytes",
        ),
        "RLE segments that overlap": (
            dicom(
                np.zeros((1_000, 1_000, 3), np.uint8),
                syntax=RLE,
                colours="RGB",
                frames=[struct.pack("<16I", 3, 66, 64, 64, *[0] * 12) + runs],
            ),
            "RLE segments overlap",
        ),
        "a JPEG bomb": (
            dicom(small, syntax=JPEG, frames=[encode(large, "JPEG")]),
            "is 8 x 8 pixels, its frame 3000 x 3000",
        ),
        "a JPEG of many scans": (
            dicom(
                small,
                syntax=JPEG,
                frames=[small_jpeg[:scan] + small_jpeg[scan:-2] * 10_000 + small_jpeg[-2:]],
            ),
            "has 10000 scans",
        ),
        "a JPEG 2000 bomb": (
            dicom(small, syntax=JPEG_2000, frames=[encode(large, "JPEG2000", no_jp2=True)]),
            "is 8 x 8 pixels, its frame 3000 x 3000",
        ),
        "a palette that unfolds": (
            dicom(small, {0x00281101: ("US", [256, 0, 16]), **segmented}, colours="PALETTE COLOR"),
            "segmented tables are not supported",
        ),
        "more rows than there are": (
            dicom(small, {0x00280010: ("US", [5_000])}),
            "less than expected",
        ),
        "more frames than there are": (
            dicom(small, {0x00280008: ("IS", "2000000000")}),
            "less than expected",
        ),
        "frames without end": (dicom(small, {0x00280008: ("IS", "9" * 5_000)}), "infinity"),
        "an offset beyond the end": (dicom(small, {PIXELS: ("OB", far)}, syntax=RLE), "damaged"),
    }


def _delimiter(tag: int, length: int = 0) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)
