"""A DICOM file becomes the picture that a viewer shows first, or one image's error."""

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


def shown(content: bytes) -> NDArray[np.uint8]:
    """Return the picture of a DICOM file at its full size; without a window, of its full range."""
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
    """Without a window, the darkest sample of the frame is black and its brightest white."""
    want = np.rint(RAMP / 4_095 * 255)
    assert (shown(dicom(RAMP, TWELVE)) == want).all()


def test_the_range_is_the_frame_s_own() -> None:
    """Samples that span but a part of their bits are spread over all shades."""
    samples = ramp(1_000, 1_255, "u2")
    assert (shown(dicom(samples, TWELVE)) == samples - 1_000).all()


def test_a_frame_of_one_shade_is_black() -> None:
    """A frame without any contrast divides nothing by zero."""
    assert (shown(dicom(np.full((4, 4), 700, np.uint16))) == 0).all()


def test_rescale_and_window_are_those_of_the_standard() -> None:
    """Each shade is the one that PS3.3 C.11.2.1.2.1 gives, worked out by hand."""
    samples = np.array([[0, 400, 512, 532, 561, 562, 612, 700]], np.uint16)
    more: Elements = {SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024"), **window(50, 100)}
    # Values: -1024, -224, 0, 40, 98, 100, 200, 376. ((x - 49.5) / 99 + 0.5) * 255 within 0..99.
    want = [0, 0, 0, 103, 252, 255, 255, 255]
    assert shown(dicom(samples, more)).tolist() == [want]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (300, 1), (300.5, 2), (-50, 700)])
def test_each_voi_function_is_that_of_the_standard(
    function: str, centre: float, width: float
) -> None:
    """LINEAR, LINEAR_EXACT and SIGMOID windows give the formulas of PS3.3 C.11.2.1.2 and .3."""

    def shade(x: float) -> float:
        if function == "SIGMOID":
            return 255 / (1 + math.exp(min(-4 * (x - centre) / width, 700)))
        c, w = (centre - 0.5, width - 1) if function == "LINEAR" else (centre, width)
        if x <= c - w / 2:
            return 0
        return 255 if x > c + w / 2 else ((x - c) / w + 0.5) * 255

    samples = np.arange(0, 640, 2, dtype=np.uint16).reshape(16, 20)
    want = [[round(shade(int(x))) for x in row] for row in samples]
    assert shown(dicom(samples, window(centre, width, function))).tolist() == want


@pytest.mark.parametrize("signed", [False, True])
def test_windows_are_those_of_pydicom(signed: bool) -> None:
    """What is shown is what pydicom makes of rescale and window, scaled to 8 bits."""
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    samples = ramp(-1_024, 3_071, "i2") if signed else RAMP
    more: Elements = {SLOPE: ("DS", "1.5"), INTERCEPT: ("DS", "-700"), **window(400, 1_500)}
    content = dicom(samples, more)
    dataset = pydicom.dcmread(io.BytesIO(content))
    got = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = (1.5 * end - 700 for end in ((-32_768, 32_767) if signed else (0, 65_535)))
    assert (shown(content) == np.rint((got - low) / (high - low) * 255)).all()


def test_the_first_of_several_windows_is_used() -> None:
    """Where a file suggests several windows, the first is taken."""
    several: Elements = {CENTRE: ("DS", "100\\2000"), WIDTH: ("DS", "50\\4000")}
    assert (shown(dicom(RAMP, several)) == shown(dicom(RAMP, window(100, 50)))).all()


def test_an_empty_window_is_none() -> None:
    """Elements without a value count as missing."""
    empty: Elements = {CENTRE: ("DS", ""), WIDTH: ("DS", ""), SLOPE: ("DS", "")}
    assert (shown(dicom(RAMP, empty)) == shown(dicom(RAMP))).all()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (window(100, 0), "window is 0 wide"),
        (window(100, 0.5), "window is 0.5 wide"),
        (window(100, -3, "SIGMOID"), "window is -3 wide"),
        (window(100, 50, "CUBIC"), "'CUBIC'"),
        ({CENTRE: ("DS", "nan"), WIDTH: ("DS", "9")}, "WindowCenter is nan"),
        ({SLOPE: ("DS", "1e308"), INTERCEPT: ("DS", "0")}, "overflow"),
    ],
)
def test_windows_that_mean_nothing_are_refused(more: Elements, what: str) -> None:
    """A window without a width, and numbers that are none, are named in the error."""
    with pytest.raises(ImageError, match=what):
        shown(dicom(RAMP, more))


def test_signed_samples_keep_their_order() -> None:
    """Hounsfield units below 0 are darker than those above: nothing wraps around."""
    picture = shown(dicom(ramp(-1_024, 3_071, "i2"))).ravel().astype(int)
    assert (np.diff(picture) >= 0).all()
    assert (picture[0], picture[-1]) == (0, 255)


@pytest.mark.parametrize("more", [{}, window(2_000, 1_000)])
def test_monochrome1_is_inverted(more: Elements) -> None:
    """Where the lowest sample is meant to be white, it is."""
    inverted = shown(dicom(RAMP, more, colours="MONOCHROME1"))
    assert (inverted == 255 - shown(dicom(RAMP, more))).all()


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
def test_padding_sets_no_contrast(colours: str, dtype: str, filling: int, more: Elements) -> None:
    """What fills up the rectangle is black, and the rest has the contrast that it has alone."""
    samples = ramp(100, 355, dtype)
    padded = samples.copy()
    padded[:, :5] = filling
    picture = shown(dicom(padded, more, colours=colours))
    alone = shown(dicom(np.ascontiguousarray(samples[:, 5:]), colours=colours))
    assert (picture[:, :5] == 0).all()
    assert (picture[:, 5:] == alone).all()


def test_padding_in_bits_that_are_not_stored_is_found() -> None:
    """A padding value beyond the stored bits is compared by those that are."""
    padded = ramp(100, 355, "u2")
    padded[:, :5] = 0xFFFF
    picture = shown(dicom(padded, {**TWELVE, PADDING: ("US", [0xFFFF])}))
    assert (picture[:, :5] == 0).all()
    assert (picture[:, 5:] > 0).any(axis=1).all()


def test_nothing_but_padding_is_black() -> None:
    """A frame that is all padding is a black picture."""
    content = dicom(np.full((4, 4), 9, np.uint8), {PADDING: ("US", [9])})
    assert (shown(content) == 0).all()


# Look-up tables


def lut(first: int, bits: int, entries: NDArray[Any]) -> list[Elements]:
    return [
        {
            DESCRIPTOR: ("SS" if first < 0 else "US", [len(entries), first, bits]),
            LUT_DATA: ("OW", entries.tobytes()),
        }
    ]


def test_a_modality_table_replaces_the_rescale() -> None:
    """The modality LUT's entries are the values, the ends of the table reaching beyond it."""
    squares = np.arange(256).astype("<u2") ** 2
    samples = np.array([[0, 9, 10, 20, 265, 300]], np.uint16)
    picture = shown(dicom(samples, {MODALITY_LUT: ("SQ", lut(10, 16, squares))}))
    want = np.array([0, 0, 0, 10, 255, 255]) ** 2 / 255
    assert (picture == np.rint(want)).all()


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_voi_table_is_the_window(syntax: str) -> None:
    """The entries of a VOI LUT, of as many bits as it says, are the shades."""
    data = (4_095 - np.arange(4_096)).astype(">u2" if syntax == BIG_ENDIAN else "<u2")
    content = dicom(RAMP, {VOI_LUT: ("SQ", lut(0, 12, data))}, syntax=syntax)
    assert (shown(content) == np.rint((4_095 - RAMP.astype(float)) / 4_095 * 255)).all()


def test_a_sequence_of_unknown_kind_is_read() -> None:
    """A sequence that a program passed on as unknown bytes is what it was."""
    window_ = b"".join(element(*one, syntax=IMPLICIT) for one in flat(window(50, 100)))
    grouped = element(0x00289132, "SQ", [], syntax=IMPLICIT)[:-4]
    grouped += struct.pack("<I", len(item(window_))) + item(window_)
    content = dicom(RAMP, {0x52009229: ("UN", item(grouped))})
    assert (shown(content) == shown(dicom(RAMP, window(50, 100)))).all()


def test_a_long_table_of_8_bits_does_not_wrap_around() -> None:
    """A VOI LUT of 4,096 entries of 8 bits is read beyond its 256th."""
    entries = (np.arange(4_096) >> 4).astype(np.uint8)
    assert (shown(dicom(RAMP, {VOI_LUT: ("SQ", lut(0, 8, entries))})) == RAMP >> 4).all()


@pytest.mark.parametrize("syntax", [UNCOMPRESSED, IMPLICIT])
def test_a_voi_table_starts_below_zero(syntax: str) -> None:
    """Where rescaled values are negative, so may be the first that the table maps."""
    entries = np.arange(4_096, dtype="<u2")
    more: Elements = {
        SLOPE: ("DS", "1"),
        INTERCEPT: ("DS", "-1024"),
        VOI_LUT: ("SQ", lut(-1_024, 12, entries)),
    }
    assert (shown(dicom(RAMP, more, syntax=syntax)) == np.rint(RAMP / 4_095 * 255)).all()


def test_a_table_that_is_too_short_is_refused() -> None:
    """A table with fewer entries than it says is named with both numbers."""
    item_ = {DESCRIPTOR: ("US", [4_096, 0, 12]), LUT_DATA: ("OW", bytes(100))}
    with pytest.raises(ImageError, match="LUTData has 100 bytes for 4096 entries"):
        shown(dicom(RAMP, {VOI_LUT: ("SQ", [item_])}))


@pytest.mark.parametrize("group", [0x52009229, 0x52009230])
@pytest.mark.parametrize("syntax", [UNCOMPRESSED, IMPLICIT])
def test_the_first_frame_s_own_window_is_used(group: int, syntax: str) -> None:
    """An enhanced file has window and rescale in shared or per-frame functional groups."""
    grouped: Elements = {
        0x00289132: ("SQ", [window(50, 100)]),
        0x00289145: ("SQ", [{SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024")}]),
    }
    other: Elements = {0x00289132: ("SQ", [window(9, 9)])}
    plain = {SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024"), **window(50, 100)}
    want = shown(dicom(RAMP, plain))
    assert 0 < want.mean() < 255
    assert (shown(dicom(RAMP, {group: ("SQ", [grouped, other])}, syntax=syntax)) == want).all()


# Colours

RGB = np.asarray(gradient(20, 16))


@pytest.mark.parametrize("syntax", NATIVE)
def test_rgb_is_as_stored(syntax: str) -> None:
    """Colours of 8 bits come out as they are."""
    assert (shown(dicom(RGB, colours="RGB", syntax=syntax)) == RGB).all()


def test_colours_in_planes_are_put_together() -> None:
    """All reds, then all greens, then all blues are the same picture."""
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1)).tobytes()
    more: Elements = {0x00280006: ("US", [1]), PIXELS: ("OB", planes)}
    assert (shown(dicom(RGB, more, colours="RGB")) == RGB).all()


def test_deep_colours_keep_their_upper_bits() -> None:
    """Colours of 12 bits in 16 keep their upper 8."""
    deep = (RGB.astype(np.uint16) << 4) | 7
    assert (shown(dicom(deep, TWELVE, colours="RGB")) == RGB).all()


@pytest.mark.parametrize("colours", ["YBR_FULL", "YBR_FULL_422"])
def test_luma_and_chroma_become_rgb(colours: str) -> None:
    """YBR colours, also with half as many chroma samples, come out as RGB."""
    ycc = np.asarray(Image.new("RGB", (20, 16), (200, 60, 30)).convert("YCbCr"))
    more: Elements = {}
    if colours == "YBR_FULL_422":
        halved = [[*ycc[0, 0, [0, 0, 1, 2]]] * 10] * 16
        more = {PIXELS: ("OB", np.array(halved, np.uint8).tobytes())}
    picture = shown(dicom(ycc, more, colours=colours)).astype(int)
    assert np.abs(picture - (200, 60, 30)).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_gives_its_colours(bits: int) -> None:
    """Samples are looked up in three tables of 8 or 16 bits."""
    tables = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)])
    stored = tables.astype(np.uint8) if bits == 8 else (tables * 257).astype("<u2")
    more: Elements = {0x00281101 + n: ("US", [256, 0, bits]) for n in range(3)}
    more |= {0x00281201 + n: ("OW", stored[n].tobytes()) for n in range(3)}
    samples = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = shown(dicom(samples, more, colours="PALETTE COLOR"))
    assert (picture == tables[:, samples].transpose(1, 2, 0)).all()


@pytest.mark.parametrize(
    ("samples", "colours", "more", "what"),
    [
        (RGB, "CMYK", {}, "colours are CMYK with 3 samples"),
        (RGB, "MONOCHROME2", {}, "colours are MONOCHROME2 with 3 samples"),
        (RAMP, "RGB", {}, "colours are RGB with 1 samples"),
        (RAMP.astype(np.uint32), "MONOCHROME2", {}, "32 bits a sample"),
        (RAMP, "MONOCHROME2", {**TWELVE, HIGH_BIT: ("US", [15])}, "highest bit is 15 of 12"),
        (RAMP, "MONOCHROME2", {0x00280010: ("US", None)}, "no Rows"),
        (RAMP, "MONOCHROME2", {0x00280010: ("US", [0])}, "20 x 0 pixels"),
        (RAMP, "MONOCHROME2", {PIXELS: ("OW", None)}, "no pixels"),
    ],
)
def test_what_cannot_be_read_is_named(
    samples: NDArray[Any], colours: str, more: Elements, what: str
) -> None:
    """Kinds of pixels that no rule covers are refused with what they are."""
    with pytest.raises(ImageError, match=what):
        shown(dicom(samples, more, colours=colours))


# Transfer syntaxes and frames


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2"])
def test_uncompressed_syntaxes_agree(syntax: str, dtype: str) -> None:
    """Byte order, implicit types and deflation change nothing in the picture."""
    info = np.iinfo(dtype)
    samples = ramp(info.min, info.max, dtype)
    more = {PADDING: ("SS" if info.min < 0 else "US", [info.max]), **window(20, 200)}
    assert (shown(dicom(samples, more, syntax=syntax)) == shown(dicom(samples, more))).all()


def packed(samples: NDArray[Any]) -> bytes:
    """Return an RLE frame: high bytes, then low bytes, row by row as they are or as runs."""
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
def test_rle_is_unpacked(samples: NDArray[Any]) -> None:
    """Runs and literal bytes of RLE give the picture of the uncompressed file."""
    content = dicom(samples, syntax=RLE, frames=[packed(samples)])
    assert (shown(content) == shown(dicom(samples))).all()


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_jpeg_2000_is_decoded(dtype: str) -> None:
    """Lossless JPEG 2000 of 8 and 16 bits gives the picture of the uncompressed file."""
    samples = ramp(0, np.iinfo(dtype).max, dtype)
    frame = encode(Image.fromarray(samples), "JPEG2000", no_jp2=True)
    content = dicom(samples, syntax=JPEG_2000, frames=[frame])
    assert (shown(content) == shown(dicom(samples))).all()


def test_a_jp2_header_is_skipped() -> None:
    """A frame in the form of a JP2 file is read too."""
    samples = ramp(0, 255, "u1")
    frame = encode(Image.fromarray(samples), "JPEG2000", no_jp2=False)
    assert frame[4:8] == b"jP  "
    content = dicom(samples, syntax=JPEG_2000, frames=[frame])
    assert (shown(content) == shown(dicom(samples))).all()


def jpeg(kind: str) -> bytes:
    """Return a JPEG of RED whose colours are told by a JFIF or an Adobe marker, or by nothing."""
    jfif = encode(Image.new("RGB", (20, 16), (220, 10, 20)), "JPEG", quality=100, subsampling=0)
    assert jfif[2:4] == b"\xff\xe0"
    bare = jfif[:2] + jfif[4 + struct.unpack(">H", jfif[4:6])[0] :]
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    return {"JFIF": jfif, "bare": bare, "Adobe": bare[:2] + adobe + bare[2:]}[kind]


@pytest.mark.parametrize("kind", ["JFIF", "bare", "Adobe"])
@pytest.mark.parametrize("colours", ["YBR_FULL", "YBR_FULL_422"])
def test_jpeg_colours_are_converted_once(kind: str, colours: str) -> None:
    """Whatever marker says so, luma and chroma of a JPEG become RGB, and only once."""
    content = dicom(
        np.zeros((16, 20, 3), np.uint8), syntax=JPEG, colours=colours, frames=[jpeg(kind)]
    )
    assert np.abs(shown(content).astype(int) - (220, 10, 20)).max() <= 2


def test_a_grey_jpeg_is_decoded() -> None:
    """A greyscale JPEG frame is the picture of that JPEG."""
    samples = ramp(0, 255, "u1")
    frame = encode(Image.fromarray(samples), "JPEG", quality=100)
    content = dicom(samples, window(128, 256), syntax=JPEG, frames=[frame])
    with Image.open(io.BytesIO(frame)) as image:
        assert np.abs(shown(content).astype(int) - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("syntax", [UNCOMPRESSED, RLE])
def test_the_first_of_several_frames_is_shown(syntax: str) -> None:
    """Of several frames the first is the picture, and its range is its own."""
    samples = ramp(0, 255, "u1")
    more: Elements = {FRAMES: ("IS", "3")}
    if syntax == RLE:
        content = dicom(samples, more, syntax=RLE, frames=[packed(samples), b"no RLE", b"at all"])
    else:
        pixels = samples.tobytes() + bytes(640)
        content = dicom(samples, {**more, PIXELS: ("OB", pixels)})
    assert (shown(content) == samples).all()


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.70", "JPEG Lossless"),
        ("1.2.840.10008.1.2.4.80", "JPEG-LS"),
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
        ("1.2.3.4", r"1\.2\.3\.4"),
    ],
)
def test_other_transfer_syntaxes_are_named(syntax: str, name: str) -> None:
    """What cannot be decoded is refused with its name, and with what can be."""
    with pytest.raises(ImageError, match=f"{name}.*what can be read is uncompressed"):
        shown(dicom(RAMP, syntax=syntax, frames=[b"frame"]))


# The one path


def test_dicom_is_recognised_by_its_mark_alone() -> None:
    """DICM at byte 128 makes a DICOM; a file without it is none, whatever follows."""
    content = dicom(RAMP)
    preprocess(b"GIF89a".ljust(128, b"\0") + content[128:], SPEC)
    with pytest.raises(ImageError, match=r"none of JPEG, .*, DICOM"):
        preprocess(content[:128] + b"DICN" + content[132:], SPEC)


def test_a_dicom_is_cropped_and_scaled_as_any_picture() -> None:
    """The pixels of a colour DICOM are those of a PNG of the same picture."""
    pixels = preprocess(dicom(RGB, colours="RGB"), SPEC)
    assert (pixels == preprocess(encode(Image.fromarray(RGB)), SPEC)).all()
    assert pixels.shape == (16, 16, 3)


def test_a_dicom_s_size_is_limited_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of too many pixels is refused with value and limit, undecoded."""
    limits = InputLimits(max_image_pixels=319)
    monkeypatch.setattr(under_test, "decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="= 320 pixels; the limit is 319") as caught:
        preprocess(dicom(RAMP), SPEC, limits=limits)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_without_pydicom_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, a DICOM is that image's error, which names the extra."""
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"pip install 'topwork\[dicom\]'"):
        preprocess(dicom(RAMP), SPEC)


def test_the_pixels_are_the_same_in_every_thread() -> None:
    """The same file gives the same pixels, however many are read at a time."""
    content = dicom(RAMP, {**TWELVE, **window(1_000, 800, "SIGMOID")})
    with ThreadPoolExecutor(4) as pool:
        found = {one.tobytes() for one in pool.map(lambda _: preprocess(content, SPEC), range(40))}
    assert len(found) == 1


def test_pydicom_s_warnings_and_logs_stay_inside() -> None:
    """In a strict process odd files are read, and neither they nor broken ones leave a line."""
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


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.timeout(30)
def test_hostile_files_are_refused_cheaply(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs, lies and endless nesting are found out, and fill no memory on the way."""
    monkeypatch.setattr(dicom_file, "MOST_READS", 10_000)
    limits = InputLimits(max_image_pixels=4_000_000)
    content, message = HOSTILE[what]
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=message):
            preprocess(content, SPEC, limits=limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


@pytest.mark.timeout(30)
def test_a_jp2_header_without_end_is_skipped() -> None:
    """A box of no length, over which pydicom would never get, stops nobody."""
    samples = ramp(0, 255, "u1")
    frame = encode(Image.fromarray(samples), "JPEG2000", no_jp2=False)
    at = frame.index(b"jp2c") - 4
    frame = frame[:at] + b"\0\0\0\0free" + frame[at:]
    content = dicom(samples, syntax=JPEG_2000, frames=[frame])
    assert (shown(content) == shown(dicom(samples))).all()


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
def test_files_that_are_cut_off_are_refused(syntax: str) -> None:
    """However short a file is cut, it is an ImageError."""
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


@settings(max_examples=200)
@given(
    st.sampled_from([*NATIVE, RLE, JPEG, JPEG_2000]).map(dicom_header)
    | st.just(bytes(128) + b"DICM"),
    st.binary(max_size=300),
)
def test_arbitrary_bytes_are_pixels_or_an_image_error(header: bytes, rest: bytes) -> None:
    """No bytes behind a valid header make it raise anything but ImageError."""
    check_anything(header + rest)


def variants() -> dict[str, bytes]:
    """Return a file of each way to shades and colours."""
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


SOUND = {**VALID, **variants()}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a valid file in which bytes were changed, cut out or put in behind its header."""
    content = bytearray(SOUND[draw(st.sampled_from(sorted(SOUND)))])
    for _ in range(draw(st.integers(1, 4))):
        # The elements are where the reader branches: most of the damage is done there.
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
    """No damage to a valid file makes it raise anything but ImageError."""
    check_anything(content)
