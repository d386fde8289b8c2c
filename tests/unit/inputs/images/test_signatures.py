"""Format detection, and messages for unknown, unsupported, damaged and cut-off files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.bad_images import KINDS, gradient, plain
from support.dicoms import dicom
from support.pictures import encode

from topwork.errors import ImageError
from topwork.inputs.image import preprocess
from topwork.inputs.images.signatures import READABLE, recognise
from topwork.inputs.preprocess import PreprocessSpec

SPEC = PreprocessSpec(resize=20, crop=16)
NAMES = {"JPEG2000": "JPEG 2000", "PPM": "PNM"}


def refusal(content: bytes) -> str:
    """Return the message of the ImageError for ``content``."""
    with pytest.raises(ImageError) as caught:
        preprocess(content, SPEC)
    assert caught.value.reason == "IMAGE_UNREADABLE"
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_recognise_names_each_readable_format(kind: str) -> None:
    """Each supported format is detected by its first bytes."""
    assert recognise(encode(plain((1, 2, 3)), kind)) == NAMES.get(kind, kind)
    assert NAMES.get(kind, kind) in READABLE


def test_unknown_bytes_are_refused_with_length_and_formats() -> None:
    """An unknown signature is answered with all supported formats."""
    message = refusal(b"no JPEG")
    supported = ", ".join(READABLE)
    assert message == f"the image (7 bytes) has an unknown format; supported are {supported}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [0.3, 0.7, 0.95])
def test_cut_off_file_is_called_damaged(kind: str, left: float) -> None:
    """A file that ends early is damaged or cut off, not of an unknown format."""
    whole = encode(Image.effect_noise((60, 60), 90).convert("RGB"), kind)
    message = refusal(whole[: int(len(whole) * left)])
    assert "unknown format" not in message
    assert "damaged" in message or "cut off" in message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "HEIF", "AVIF", "JPEG2000"])
def test_file_with_damaged_header_is_called_damaged(kind: str) -> None:
    """A file of zeros after a valid signature is damaged, not of an unknown format."""
    whole = bytearray(encode(gradient(60, 40), kind))
    whole[12:60] = bytes(48)
    assert "is damaged" in refusal(bytes(whole))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<svg/>", "SVG"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html/>", "HTML"),
        (b"P7\nWIDTH 1\n", "PAM (Netpbm P7)"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video (MP4, QuickTime or the like)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file (Canon CR3)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (encode(plain((1, 2, 3)), "ICO"), "an icon (ICO)"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a WAVE sound"),
    ],
)
def test_unsupported_format_is_named(content: bytes, name: str) -> None:
    """The error names a known, unsupported format."""
    assert f"the image is {name}" in refusal(content)


def test_recognise_ignores_preamble_of_dicom() -> None:
    """A DICOM file may begin with the signature of another format."""
    content = dicom(np.zeros((4, 4), np.uint8))
    assert recognise(b"II*\0" + content[4:]) == "DICOM"


def test_unlisted_formats_of_pillow_are_refused() -> None:
    """Pillow's other decoders are not used."""
    for kind in ("TGA", "PCX", "EPS"):
        buffer = io.BytesIO()
        plain((1, 2, 3)).save(buffer, kind)
        refusal(buffer.getvalue())
