"""DICOM: contrast, look-up tables, colours, transfer syntaxes, and hostile files."""

from __future__ import annotations

import io
import math
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.bad_images import gradient
from support.dicoms import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    PIXELS,
    RLE,
    UNCOMPRESSED,
    Elements,
    dicom,
    dicom_header,
    element,
    flat,
    hostile_dicoms,
    item,
    rle_frame,
)
from support.pictures import encode

from topwork.errors import ImageError
from topwork.inputs import dicom as under_test
from topwork.inputs import dicom_file
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

pytest.importorskip("pydicom")
# pytest sets its own filters of warnings, in place of the one that topwork sets on import.
pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\.")

SPEC = PreprocessSpec(resize=20, crop=16, deep_grey="percentiles")
NATIVE = [UNCOMPRESSED, IMPLICIT, BIG_ENDIAN, DEFLATED]

SLOPE, INTERCEPT = 0x00281053, 0x00281052
CENTRE, WIDTH, FUNCTION = 0x00281050, 0x00281051, 0x00281056
PADDING, PADDING_LIMIT = 0x00280120, 0x00280121
MODALITY_LUT, VOI_LUT, DESCRIPTOR, LUT_DATA = 0x00283000, 0x00283010, 0x00283002, 0x00283006
STORED, HIGH_BIT, FRAMES = 0x00280101, 0x00280102, 0x00280008


def decoded(content: bytes) -> NDArray[np.uint8]:
    """Return a DICOM file's first frame at full size, and at full range if it has no window."""
    frame = under_test.open_frame(content, most_bytes=10_000_000)
    spec = replace(SPEC, deep_grey="depth")
    return np.asarray(under_test.decode(frame, spec))


def window(centre: float, width: float, function: str = "LINEAR") -> Elements:
    return {
        CENTRE: ("DS", f"{centre:g}"),
        WIDTH: ("DS", f"{width:g}"),
        FUNCTION: ("CS", function),
    }


def ramp(low: int, high: int, dtype: str) -> NDArray[Any]:
    """Return samples (16, 20) that rise by rows from ``low`` to ``high``."""
    return np.linspace(low, high, 320).round().astype(dtype).reshape(16, 20)


RAMP = ramp(0, 4_095, "u2")
TWELVE: Elements = {STORED: ("US", [12])}


# Contrast


def test_twelve_bits_keep_their_contrast() -> None:
    """Without a window, the darkest sample of the frame is black and the brightest white."""
    want = np.rint(RAMP / 4_095 * 255)
    assert (decoded(dicom(RAMP, TWELVE)) == want).all()


def test_range_is_that_of_the_frame() -> None:
    """The range of the samples, not of their bits, is mapped to all shades."""
    samples = ramp(1_000, 1_255, "u2")
    assert (decoded(dicom(samples, TWELVE)) == samples - 1_000).all()


def test_uniform_frame_is_black() -> None:
    """A frame without contrast causes no division by zero."""
    assert (decoded(dicom(np.full((4, 4), 700, np.uint16))) == 0).all()


def test_rescale_and_window_match_the_standard() -> None:
    """The shades equal those computed by hand from PS3.3 C.11.2.1.2.1."""
    samples = np.array([[0, 400, 512, 532, 561, 562, 612, 700]], np.uint16)
    more: Elements = {SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024"), **window(50, 100)}
    # Values: -1024, -224, 0, 40, 98, 100, 200, 376. ((x - 49.5) / 99 + 0.5) * 255 within 0..99.
    want = [0, 0, 0, 103, 252, 255, 255, 255]
    assert decoded(dicom(samples, more)).tolist() == [want]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (300, 1), (300.5, 2), (-50, 700)])
def test_voi_functions_match_the_standard(function: str, centre: float, width: float) -> None:
    """LINEAR, LINEAR_EXACT and SIGMOID follow the formulas of PS3.3 C.11.2.1.2 and .3."""

    def shade(x: float) -> float:
        if function == "SIGMOID":
            return 255 / (1 + math.exp(min(-4 * (x - centre) / width, 700)))
        c, w = (centre - 0.5, width - 1) if function == "LINEAR" else (centre, width)
        if x <= c - w / 2:
            return 0
        return 255 if x > c + w / 2 else ((x - c) / w + 0.5) * 255

    samples = np.arange(0, 640, 2, dtype=np.uint16).reshape(16, 20)
    want = [[round(shade(int(x))) for x in row] for row in samples]
    assert decoded(dicom(samples, window(centre, width, function))).tolist() == want


@pytest.mark.parametrize("signed", [False, True])
def test_window_matches_pydicom(signed: bool) -> None:
    """Rescale and window give pydicom's result, scaled to 8 bits."""
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    samples = ramp(-1_024, 3_071, "i2") if signed else RAMP
    more: Elements = {SLOPE: ("DS", "1.5"), INTERCEPT: ("DS", "-700"), **window(400, 1_500)}
    content = dicom(samples, more)
    dataset = pydicom.dcmread(io.BytesIO(content))
    got = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = (1.5 * end - 700 for end in ((-32_768, 32_767) if signed else (0, 65_535)))
    assert (decoded(content) == np.rint((got - low) / (high - low) * 255)).all()


def test_first_of_several_windows_is_used() -> None:
    """WindowCenter and WindowWidth may have several values."""
    several: Elements = {CENTRE: ("DS", "100\\2000"), WIDTH: ("DS", "50\\4000")}
    assert (decoded(dicom(RAMP, several)) == decoded(dicom(RAMP, window(100, 50)))).all()


def test_empty_window_is_ignored() -> None:
    """Elements without a value count as missing."""
    empty: Elements = {CENTRE: ("DS", ""), WIDTH: ("DS", ""), SLOPE: ("DS", "")}
    assert (decoded(dicom(RAMP, empty)) == decoded(dicom(RAMP))).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (window(100, 0), "window is 0 wide"),
        (window(100, 0.5), "window is 0.5 wide"),
        (window(100, -3, "SIGMOID"), "window is -3 wide"),
        (window(100, 50, "CUBIC"), "'CUBIC'"),
        ({CENTRE: ("DS", "nan"), WIDTH: ("DS", "9")}, "WindowCenter is nan"),
        ({SLOPE: ("DS", "1e308"), INTERCEPT: ("DS", "0")}, "overflow"),
    ],
)
def test_invalid_window_is_refused(more: Elements, message: str) -> None:
    """The error has the invalid width, function or number."""
    with pytest.raises(ImageError, match=message):
        decoded(dicom(RAMP, more))


def test_signed_samples_keep_their_order() -> None:
    """Hounsfield units below 0 are darker than those above, without overflow."""
    picture = decoded(dicom(ramp(-1_024, 3_071, "i2"))).ravel().astype(int)
    assert (np.diff(picture) >= 0).all()
    assert (picture[0], picture[-1]) == (0, 255)


@pytest.mark.parametrize("more", [{}, window(2_000, 1_000)])
def test_monochrome1_is_inverted(more: Elements) -> None:
    """In MONOCHROME1 the lowest sample is white."""
    inverted = decoded(dicom(RAMP, more, colours="MONOCHROME1"))
    assert (inverted == 255 - decoded(dicom(RAMP, more))).all()


@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("dtype", "filling", "more"),
    [
        ("i2", -2_000, {PADDING: ("SS", [-2_000])}),
        ("i2", -2_000, {PADDING: ("US", [63_536])}),  # a common mistake
        ("u2", 65_535, {PADDING: ("US", [65_535])}),
        ("u2", 0, {PADDING: ("US", [0])}),
        ("i2", -1_500, {PADDING: ("SS", [-2_000]), PADDING_LIMIT: ("SS", [-1_400])}),
        ("u2", 60_000, {PADDING: ("US", [65_535]), PADDING_LIMIT: ("US", [50_000])}),
    ],
)
def test_padding_does_not_affect_contrast(
    colours: str, dtype: str, filling: int, more: Elements
) -> None:
    """Padding is black, and the other samples have the contrast of the frame without padding."""
    samples = ramp(100, 355, dtype)
    padded = samples.copy()
    padded[:, :5] = filling
    picture = decoded(dicom(padded, more, colours=colours))
    alone = decoded(dicom(np.ascontiguousarray(samples[:, 5:]), colours=colours))
    assert (picture[:, :5] == 0).all()
    assert (picture[:, 5:] == alone).all()


def test_padding_value_with_unused_bits_is_recognised() -> None:
    """Only the stored bits of a padding value are compared."""
    padded = ramp(100, 355, "u2")
    padded[:, :5] = 0xFFFF
    picture = decoded(dicom(padded, {**TWELVE, PADDING: ("US", [0xFFFF])}))
    assert (picture[:, :5] == 0).all()
    assert (picture[:, 5:] > 0).any(axis=1).all()


def test_frame_of_padding_is_black() -> None:
    """A frame may consist of padding only."""
    content = dicom(np.full((4, 4), 9, np.uint8), {PADDING: ("US", [9])})
    assert (decoded(content) == 0).all()


# Look-up tables


def lut(first: int, bits: int, entries: NDArray[Any]) -> list[Elements]:
    return [
        {
            DESCRIPTOR: ("SS" if first < 0 else "US", [len(entries), first, bits]),
            LUT_DATA: ("OW", entries.tobytes()),
        }
    ]


def test_modality_lut_replaces_rescale() -> None:
    """Samples outside of the table have the values of its ends."""
    squares = np.arange(256).astype("<u2") ** 2
    samples = np.array([[0, 9, 10, 20, 265, 300]], np.uint16)
    picture = decoded(dicom(samples, {MODALITY_LUT: ("SQ", lut(10, 16, squares))}))
    want = np.array([0, 0, 0, 10, 255, 255]) ** 2 / 255
    assert (picture == np.rint(want)).all()


@pytest.mark.parametrize("syntax", NATIVE)
def test_voi_lut_replaces_window(syntax: str) -> None:
    """The entries of a VOI LUT, scaled from its bits, are the shades."""
    data = (4_095 - np.arange(4_096)).astype(">u2" if syntax == BIG_ENDIAN else "<u2")
    content = dicom(RAMP, {VOI_LUT: ("SQ", lut(0, 12, data))}, syntax=syntax)
    assert (decoded(content) == np.rint((4_095 - RAMP.astype(float)) / 4_095 * 255)).all()


def test_sequence_of_unknown_vr_is_read() -> None:
    """A program may have copied a sequence as UN, in implicit form."""
    window_ = b"".join(element(*each, syntax=IMPLICIT) for each in flat(window(50, 100)))
    grouped = element(0x00289132, "SQ", [], syntax=IMPLICIT)[:-4]
    grouped += struct.pack("<I", len(item(window_))) + item(window_)
    content = dicom(RAMP, {0x52009229: ("UN", item(grouped))})
    assert (decoded(content) == decoded(dicom(RAMP, window(50, 100)))).all()


def test_voi_lut_of_8_bits_may_exceed_256_entries() -> None:
    """A VOI LUT of 4,096 entries of 8 bits is read in full."""
    entries = (np.arange(4_096) >> 4).astype(np.uint8)
    assert (decoded(dicom(RAMP, {VOI_LUT: ("SQ", lut(0, 8, entries))})) == RAMP >> 4).all()


@pytest.mark.parametrize("syntax", [UNCOMPRESSED, IMPLICIT])
def test_voi_lut_may_start_below_zero(syntax: str) -> None:
    """The first mapped value is signed if rescaled values are negative."""
    entries = np.arange(4_096, dtype="<u2")
    more: Elements = {
        SLOPE: ("DS", "1"),
        INTERCEPT: ("DS", "-1024"),
        VOI_LUT: ("SQ", lut(-1_024, 12, entries)),
    }
    assert (decoded(dicom(RAMP, more, syntax=syntax)) == np.rint(RAMP / 4_095 * 255)).all()


def test_lut_shorter_than_its_descriptor_is_refused() -> None:
    """The error has the number of bytes and of entries."""
    item_ = {DESCRIPTOR: ("US", [4_096, 0, 12]), LUT_DATA: ("OW", bytes(100))}
    with pytest.raises(ImageError, match="LUTData has 100 bytes for 4096 entries"):
        decoded(dicom(RAMP, {VOI_LUT: ("SQ", [item_])}))


@pytest.mark.parametrize("group", [0x52009229, 0x52009230])
@pytest.mark.parametrize("syntax", [UNCOMPRESSED, IMPLICIT])
def test_window_in_functional_groups_is_used(group: int, syntax: str) -> None:
    """Enhanced files have window and rescale in shared or per-frame functional groups."""
    grouped: Elements = {
        0x00289132: ("SQ", [window(50, 100)]),
        0x00289145: ("SQ", [{SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024")}]),
    }
    other: Elements = {0x00289132: ("SQ", [window(9, 9)])}
    plain = {SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024"), **window(50, 100)}
    want = decoded(dicom(RAMP, plain))
    assert 0 < want.mean() < 255
    assert (decoded(dicom(RAMP, {group: ("SQ", [grouped, other])}, syntax=syntax)) == want).all()


# Colours

RGB = np.asarray(gradient(20, 16))


@pytest.mark.parametrize("syntax", NATIVE)
def test_rgb_is_unchanged(syntax: str) -> None:
    """RGB of 8 bits is not converted."""
    assert (decoded(dicom(RGB, colours="RGB", syntax=syntax)) == RGB).all()


def test_colour_by_plane_is_interleaved() -> None:
    """PlanarConfiguration 1 gives the same picture as 0."""
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1)).tobytes()
    more: Elements = {0x00280006: ("US", [1]), PIXELS: ("OB", planes)}
    assert (decoded(dicom(RGB, more, colours="RGB")) == RGB).all()


def test_deep_colours_become_upper_bits() -> None:
    """Colours of 12 bits in 16 give their upper 8 bits."""
    deep = (RGB.astype(np.uint16) << 4) | 7
    assert (decoded(dicom(deep, TWELVE, colours="RGB")) == RGB).all()


@pytest.mark.parametrize("colours", ["YBR_FULL", "YBR_FULL_422"])
def test_ybr_is_converted_to_rgb(colours: str) -> None:
    """Also with half as many chroma samples."""
    ycc = np.asarray(Image.new("RGB", (20, 16), (200, 60, 30)).convert("YCbCr"))
    more: Elements = {}
    if colours == "YBR_FULL_422":
        halved = [[*ycc[0, 0, [0, 0, 1, 2]]] * 10] * 16
        more = {PIXELS: ("OB", np.array(halved, np.uint8).tobytes())}
    picture = decoded(dicom(ycc, more, colours=colours)).astype(int)
    assert np.abs(picture - (200, 60, 30)).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_is_applied(bits: int) -> None:
    """A palette has three tables of 8 or 16 bits."""
    tables = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)])
    stored = tables.astype(np.uint8) if bits == 8 else (tables * 257).astype("<u2")
    more: Elements = {0x00281101 + n: ("US", [256, 0, bits]) for n in range(3)}
    more |= {0x00281201 + n: ("OW", stored[n].tobytes()) for n in range(3)}
    samples = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = decoded(dicom(samples, more, colours="PALETTE COLOR"))
    assert (picture == tables[:, samples].transpose(1, 2, 0)).all()


@pytest.mark.parametrize(
    ("samples", "colours", "more", "message"),
    [
        (RGB, "CMYK", {}, "interpretation is CMYK with 3 samples"),
        (RGB, "MONOCHROME2", {}, "interpretation is MONOCHROME2 with 3 samples"),
        (RAMP, "RGB", {}, "interpretation is RGB with 1 samples"),
        (RAMP.astype(np.uint32), "MONOCHROME2", {}, "32 bits per sample"),
        (RAMP, "MONOCHROME2", {**TWELVE, HIGH_BIT: ("US", [15])}, "highest bit is 15 of 12"),
        (RAMP, "MONOCHROME2", {0x00280010: ("US", None)}, "no Rows"),
        (RAMP, "MONOCHROME2", {0x00280010: ("US", [0])}, "20 x 0 pixels"),
        (RAMP, "MONOCHROME2", {PIXELS: ("OW", None)}, "no integer pixel data"),
    ],
)
def test_unsupported_pixels_are_refused(
    samples: NDArray[Any], colours: str, more: Elements, message: str
) -> None:
    """The error names the unsupported or invalid element."""
    with pytest.raises(ImageError, match=message):
        decoded(dicom(samples, more, colours=colours))


# Transfer syntaxes and frames


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2"])
def test_uncompressed_syntaxes_agree(syntax: str, dtype: str) -> None:
    """Byte order, implicit VR and deflation do not change the picture."""
    info = np.iinfo(dtype)
    samples = ramp(info.min, info.max, dtype)
    more = {PADDING: ("SS" if info.min < 0 else "US", [info.max]), **window(20, 200)}
    assert (decoded(dicom(samples, more, syntax=syntax)) == decoded(dicom(samples, more))).all()


def packed(samples: NDArray[Any]) -> bytes:
    """Return an RLE frame: high bytes, then low bytes, each row as literals or as a run."""
    planes = samples.astype(samples.dtype.newbyteorder(">")).view(np.uint8)
    planes = planes.reshape(*samples.shape, samples.itemsize)
    segments = []
    for plane in np.moveaxis(planes, -1, 0):
        rows = [
            bytes([257 - len(row), row[0]])
            if (row == row[0]).all()
            else bytes([len(row) - 1]) + row.tobytes()
            for row in plane
        ]
        segments.append(b"".join(rows))
    return rle_frame(*(segment + b"\x80" * (len(segment) % 2) for segment in segments))


@pytest.mark.parametrize("samples", [RAMP, RAMP.T.copy(), (RAMP >> 4).astype(np.uint8)])
def test_rle_is_decoded(samples: NDArray[Any]) -> None:
    """Runs and literals give the picture of the uncompressed file."""
    content = dicom(samples, syntax=RLE, frames=[packed(samples)])
    assert (decoded(content) == decoded(dicom(samples))).all()


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_jpeg_2000_is_decoded(dtype: str) -> None:
    """Lossless JPEG 2000 of 8 and 16 bits gives the picture of the uncompressed file."""
    samples = ramp(0, np.iinfo(dtype).max, dtype)
    frame = encode(Image.fromarray(samples), "JPEG2000", no_jp2=True)
    content = dicom(samples, syntax=JPEG_2000, frames=[frame])
    assert (decoded(content) == decoded(dicom(samples))).all()


def test_jp2_header_is_skipped() -> None:
    """A frame may be a JP2 file instead of a codestream."""
    samples = ramp(0, 255, "u1")
    frame = encode(Image.fromarray(samples), "JPEG2000", no_jp2=False)
    assert frame[4:8] == b"jP  "
    content = dicom(samples, syntax=JPEG_2000, frames=[frame])
    assert (decoded(content) == decoded(dicom(samples))).all()


def jpeg(kind: str) -> bytes:
    """Return a red JPEG with a JFIF marker, an Adobe marker or neither."""
    jfif = encode(Image.new("RGB", (20, 16), (220, 10, 20)), "JPEG", quality=100, subsampling=0)
    assert jfif[2:4] == b"\xff\xe0"
    bare = jfif[:2] + jfif[4 + struct.unpack(">H", jfif[4:6])[0] :]
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    return {"JFIF": jfif, "bare": bare, "Adobe": bare[:2] + adobe + bare[2:]}[kind]


@pytest.mark.parametrize("kind", ["JFIF", "bare", "Adobe"])
@pytest.mark.parametrize("colours", ["YBR_FULL", "YBR_FULL_422"])
def test_jpeg_colours_are_converted_once(kind: str, colours: str) -> None:
    """YCbCr of a JPEG becomes RGB exactly once, with every kind of marker."""
    content = dicom(
        np.zeros((16, 20, 3), np.uint8), syntax=JPEG, colours=colours, frames=[jpeg(kind)]
    )
    assert np.abs(decoded(content).astype(int) - (220, 10, 20)).max() <= 2


def test_greyscale_jpeg_is_decoded() -> None:
    """A greyscale JPEG frame gives the picture of that JPEG."""
    samples = ramp(0, 255, "u1")
    frame = encode(Image.fromarray(samples), "JPEG", quality=100)
    content = dicom(samples, window(128, 256), syntax=JPEG, frames=[frame])
    with Image.open(io.BytesIO(frame)) as image:
        assert np.abs(decoded(content).astype(int) - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("syntax", [UNCOMPRESSED, RLE])
def test_first_of_several_frames_is_decoded(syntax: str) -> None:
    """Other frames do not affect the range of the first."""
    samples = ramp(0, 255, "u1")
    more: Elements = {FRAMES: ("IS", "3")}
    if syntax == RLE:
        content = dicom(samples, more, syntax=RLE, frames=[packed(samples), b"no RLE", b"at all"])
    else:
        pixels = samples.tobytes() + bytes(640)
        content = dicom(samples, {**more, PIXELS: ("OB", pixels)})
    assert (decoded(content) == samples).all()


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.70", "JPEG Lossless"),
        ("1.2.840.10008.1.2.4.80", "JPEG-LS"),
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
        ("1.2.3.4", r"1\.2\.3\.4"),
    ],
)
def test_unsupported_transfer_syntax_is_refused(syntax: str, name: str) -> None:
    """The error has the name of the transfer syntax, and the supported syntaxes."""
    with pytest.raises(ImageError, match=f"{name}.*supported are uncompressed"):
        decoded(dicom(RAMP, syntax=syntax, frames=[b"frame"]))


# Through preprocess


def test_dicom_is_recognised_by_its_prefix_only() -> None:
    """A DICOM has DICM at byte 128, whatever precedes and follows."""
    content = dicom(RAMP)
    preprocess(b"GIF89a".ljust(128, b"\0") + content[128:], SPEC)
    with pytest.raises(ImageError, match=r"unknown format; supported are JPEG, .*, DICOM"):
        preprocess(content[:128] + b"DICN" + content[132:], SPEC)


def test_dicom_is_cropped_and_scaled() -> None:
    """A colour DICOM gives the pixels of a PNG of the same picture."""
    pixels = preprocess(dicom(RGB, colours="RGB"), SPEC)
    assert (pixels == preprocess(encode(Image.fromarray(RGB)), SPEC)).all()
    assert pixels.shape == (16, 16, 3)


def test_size_is_limited_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of too many pixels is refused with value and limit."""
    limits = InputLimits(max_image_pixels=319)
    monkeypatch.setattr(under_test, "decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="= 320 pixels; the limit is 319") as caught:
        preprocess(dicom(RAMP), SPEC, limits=limits)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_dicom_without_pydicom_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's error names the extra to install."""
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"pip install 'topwork\[dicom\]'"):
        preprocess(dicom(RAMP), SPEC)


def test_concurrent_decoding_gives_equal_pixels() -> None:
    """Decoding is thread-safe."""
    content = dicom(RAMP, {**TWELVE, **window(1_000, 800, "SIGMOID")})
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda _: preprocess(content, SPEC), range(40))
        assert len({pixels.tobytes() for pixels in results}) == 1


@pytest.mark.slow
def test_warnings_and_logs_of_pydicom_are_suppressed() -> None:
    """With warnings as errors unusual files are decoded, and neither they nor damaged files log."""
    odd = dicom(RAMP, {PIXELS: ("OW", RAMP.tobytes() + bytes(5_000))})
    codestream = encode(Image.fromarray(RAMP), "JPEG2000", no_jp2=True)
    broken = dicom(RAMP, syntax=JPEG_2000, frames=[codestream[: len(codestream) // 2]])
    program = f"""
import logging
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.errors import ImageError
from topwork.runtime import process
process.configure()
logging.basicConfig(level=0)
for content in ({odd!r}, {broken!r}):
    try:
        preprocess(content, PreprocessSpec(resize=20, crop=16))
        print("read")
    except ImageError:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=program,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert "pydicom" not in done.stderr
    assert done.stdout.split() == ["read", "refused"]


# Bad input

HOSTILE = hostile_dicoms()


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.timeout(30)
def test_hostile_files_are_refused_cheaply(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decompression bombs, false sizes and endless nesting take little memory."""
    monkeypatch.setattr(dicom_file, "MOST_READS", 10_000)
    limits = InputLimits(max_image_pixels=4_000_000)
    content, message = HOSTILE[kind]
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=message):
            preprocess(content, SPEC, limits=limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


@pytest.mark.timeout(30)
def test_endless_jp2_header_is_skipped() -> None:
    """A box of length 0, on which pydicom would loop for ever, is skipped."""
    samples = ramp(0, 255, "u1")
    frame = encode(Image.fromarray(samples), "JPEG2000", no_jp2=False)
    at = frame.index(b"jp2c") - 4
    frame = frame[:at] + b"\0\0\0\0free" + frame[at:]
    content = dicom(samples, syntax=JPEG_2000, frames=[frame])
    assert (decoded(content) == decoded(dicom(samples))).all()


SMALL = (RAMP >> 4).astype(np.uint8)
COMPRESSED = {
    RLE: dicom(RAMP, syntax=RLE, frames=[packed(RAMP)]),
    JPEG: dicom(SMALL, syntax=JPEG, frames=[encode(Image.fromarray(SMALL), "JPEG")]),
    JPEG_2000: dicom(
        RAMP,
        syntax=JPEG_2000,
        frames=[encode(Image.fromarray(RAMP), "JPEG2000", no_jp2=True)],
    ),
}
VALID = {**{syntax: dicom(RAMP, TWELVE, syntax=syntax) for syntax in NATIVE}, **COMPRESSED}


@pytest.mark.parametrize("syntax", VALID)
def test_cut_off_files_are_refused(syntax: str) -> None:
    """A file that ends early at any offset is an ImageError."""
    whole = VALID[syntax]
    preprocess(whole, SPEC)
    for end in range(132, len(whole) - 12, 11):
        with pytest.raises(ImageError):
            preprocess(whole[:end], SPEC)


def check_anything(content: bytes) -> None:
    """Assert that ``content`` gives pixels or ImageError."""
    try:
        pixels = preprocess(content, SPEC)
    except ImageError:
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.sampled_from([*NATIVE, RLE, JPEG, JPEG_2000]).map(dicom_header)
    | st.just(bytes(128) + b"DICM"),
    st.binary(max_size=300),
)
def test_arbitrary_bytes_are_pixels_or_an_image_error(header: bytes, rest: bytes) -> None:
    """Arbitrary bytes after a valid header raise nothing but ImageError."""
    check_anything(header + rest)


def variants() -> dict[str, bytes]:
    """Return a file for each way to compute shades and colours."""
    tables: Elements = {
        MODALITY_LUT: ("SQ", lut(0, 16, np.arange(4_096, dtype="<u2"))),
        VOI_LUT: ("SQ", lut(0, 12, np.arange(4_096, dtype="<u2"))),
    }
    grouped: Elements = {0x52009229: ("SQ", [{0x00289132: ("SQ", [window(50, 100)])}])}
    palette: Elements = {0x00281101 + n: ("US", [256, 0, 8]) for n in range(3)}
    palette |= {0x00281201 + n: ("OW", bytes(range(256))) for n in range(3)}
    padded: Elements = {PADDING: ("US", [9]), PADDING_LIMIT: ("US", [20])}
    rescaled = {SLOPE: ("DS", "1.5"), INTERCEPT: ("DS", "-9"), **window(40, 400)}
    return {
        "window": dicom(RAMP, rescaled),
        "tables": dicom(RAMP, tables),
        "functional groups": dicom(RAMP, grouped),
        "palette": dicom(SMALL, palette, colours="PALETTE COLOR"),
        "padding": dicom(RAMP, padded, colours="MONOCHROME1"),
        "RGB": dicom(RGB, colours="RGB"),
        "colour JPEG": dicom(RGB, colours="YBR_FULL_422", syntax=JPEG, frames=[jpeg("Adobe")]),
    }


INTACT = {**VALID, **variants()}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a valid file with bytes changed, deleted or inserted after its header."""
    content = bytearray(INTACT[draw(st.sampled_from(sorted(INTACT)))])
    for _ in range(draw(st.integers(1, 4))):
        # Most of the damage is in the elements, as the reader branches there.
        at = draw(st.integers(132, 420) | st.integers(132, len(content)))
        match draw(st.sampled_from(["change", "change", "change", "cut out", "put in"])):
            case "change":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut out":
                del content[at : at + draw(st.integers(1, 16))]
            case _:
                content[at:at] = draw(st.binary(min_size=1, max_size=4))
    return bytes(content)


@pytest.mark.slow
@settings(max_examples=600)
@given(damaged())
def test_damaged_files_are_pixels_or_an_image_error(content: bytes) -> None:
    """Damaged files raise nothing but ImageError."""
    check_anything(content)
