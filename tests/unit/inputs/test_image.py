"""Image decoding and preprocessing: formats, modes, geometry, damaged files."""

from __future__ import annotations

import hashlib
import io
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile
from support.bad_images import (
    EXACT,
    KINDS,
    STORED_AS,
    bombs,
    gradient,
    grey_png,
    grey_tiff,
    plain,
    png_chunk,
    turned,
    unreadable,
)
from support.heifs import grid, heic
from support.pictures import encode
from support.tiffs import RGB, tiff

from topwork.errors import ImageError
from topwork.inputs.image import pixel_digest, prepare, preprocess, upright
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import DEFAULT_LIMITS, InputLimits

SPEC = PreprocessSpec(resize=20, crop=16, deep_grey="percentiles")
DEPTH = PreprocessSpec(resize=20, crop=16, deep_grey="depth")
"""The spec of models from the time when ``depth`` was the only mapping of deep greyscale."""
RED, BLUE = (220, 10, 20), (10, 20, 220)


def close(pixels: np.ndarray, colour: Any, *, within: int = 2) -> bool:
    """Return True if all pixels differ from ``colour``, or a picture, by at most ``within``."""
    return bool((np.abs(pixels.astype(int) - np.asarray(colour, dtype=int)) <= within).all())


# Bad input


@pytest.mark.parametrize("content", unreadable().values(), ids=unreadable().keys())
def test_unreadable_file_is_an_image_error(content: bytes) -> None:
    """Empty, foreign, corrupt and cut-off files raise ImageError with a reason for clients."""
    with pytest.raises(ImageError) as caught:
        preprocess(content, SPEC)
    assert caught.value.reason == "IMAGE_UNREADABLE"


def test_unknown_format_error_lists_supported_formats() -> None:
    """The error has the file's length and the supported formats."""
    with pytest.raises(ImageError, match=r"7 bytes.*JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        preprocess(b"no JPEG", SPEC)


def test_empty_file_is_refused() -> None:
    """The error says that the file is empty."""
    with pytest.raises(ImageError, match=r"empty \(0 bytes\)"):
        preprocess(b"", SPEC)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(10_000, 5_001), (11_000, 12_000), (16_000, 16_000)])
def test_bombs_are_refused_undecoded(
    kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file of huge dimensions is refused before decoding, with value and limit."""

    def decode(_self: object, *_args: object) -> None:
        pytest.fail("the bomb was decoded")

    bomb = bombs(*size)[kind]
    assert len(bomb) < 2_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(ImageError) as caught:
        preprocess(bomb, SPEC)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert str(size[0] * size[1]) in str(caught.value)
    assert "50000000" in str(caught.value)


@pytest.mark.parametrize(
    "raised",
    [AssertionError(), RecursionError("deep"), KeyError(7), UnicodeDecodeError("a", b"", 0, 1, ""),
     ZeroDivisionError(), type("OwnError", (Exception,), {})("of a library")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("place", ["open", "load", "convert"])
def test_any_decoder_exception_is_an_image_error(
    place: str, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any exception while opening, decoding or converting becomes ImageError with its cause."""

    def broken(*_: object, **__: object) -> None:
        raise raised

    method = {"open": "_open", "load": "load", "convert": "convert"}[place]
    monkeypatch.setattr(PngImageFile, method, broken)
    with pytest.raises(
        ImageError, match=r"the PNG \(\d+ bytes\) is damaged or cut off: ."
    ) as caught:
        preprocess(encode(plain(RED).quantize(2)), SPEC)
    assert caught.value.reason == "IMAGE_UNREADABLE"


def test_unexpected_exceptions_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line has the exception's type and the image's sha256; usual damage is not logged."""
    content = encode(plain(RED))

    raised = iter([OSError("damage"), AssertionError("a bug")])

    def broken(*_: object) -> None:
        raise next(raised)

    monkeypatch.setattr(PngImageFile, "_open", broken)
    for _ in range(2):
        with pytest.raises(ImageError):
            preprocess(content, SPEC)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"AssertionError from the decoder of PNG {hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("method", ["_open", "load", "getexif"])
def test_memory_error_propagates(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MemoryError is not converted to ImageError."""

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, method, broken)
    with pytest.raises(MemoryError):
        preprocess(encode(plain(RED)), SPEC)


def test_pixel_limit_is_inclusive() -> None:
    """An image of exactly the limit is allowed, a larger image is refused."""
    content = encode(plain(RED, (30, 20)))
    preprocess(content, SPEC, limits=InputLimits(max_image_pixels=600))
    with pytest.raises(ImageError, match=r"30 x 20 = 600 pixels; the limit is 599 pixels"):
        preprocess(content, SPEC, limits=InputLimits(max_image_pixels=599))


def test_byte_limit_is_inclusive() -> None:
    """A file of exactly the limit is allowed, a longer file is refused."""
    content = encode(plain(RED))
    preprocess(content, SPEC, limits=InputLimits(max_image_bytes=len(content)))
    with pytest.raises(ImageError) as caught:
        preprocess(content, SPEC, limits=InputLimits(max_image_bytes=len(content) - 1))
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_too_many_bytes_are_refused_with_value_and_limit() -> None:
    """The length is checked before the format."""
    with pytest.raises(ImageError, match=r"3\.0 MiB; the limit is 2\.0 MiB"):
        preprocess(bytes(3 * 2**20), SPEC, limits=InputLimits(max_image_bytes=2 * 2**20))


def test_floating_point_samples_are_refused_by_name() -> None:
    """The range of a floating-point TIFF is unknown, so it is refused."""
    with pytest.raises(ImageError, match="floating-point"):
        preprocess(encode(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"), SPEC)


# Kinds of pictures


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_decoded(kind: str) -> None:
    """Each supported format gives the picture that was saved."""
    pixels = preprocess(encode(plain(RED), kind, **EXACT.get(kind, {})), SPEC)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert close(pixels, RED)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    """The other frames are ignored."""
    content = encode(plain(RED), kind, save_all=True, append_images=[plain(BLUE)])
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert close(preprocess(content, SPEC), RED, within=5)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    """Adobe stores the samples of a CMYK JPEG inverted."""
    content = encode(plain(RED).convert("CMYK"), "JPEG", quality=100)
    assert close(preprocess(content, SPEC), RED, within=4)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_modes_of_few_colours_become_rgb(mode: str) -> None:
    """Greyscale, 1-bit and palette pictures give the same pixels as their RGB form."""
    image = gradient(40, 32).convert(mode)
    want = preprocess(encode(image.convert("RGB")), SPEC)
    assert want.std() > 10
    assert (preprocess(encode(image), SPEC) == want).all()


@settings(max_examples=60, deadline=None)
@given(
    width=st.one_of(st.integers(1, 90), st.integers(1, 2000)),
    height=st.integers(1, 90),
    turn=st.integers(1, 8),
    crop=st.integers(1, 40),
    margin=st.integers(0, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_greyscale_equals_its_rgb_form(
    width: int, height: int, turn: int, crop: int, margin: int, seed: int
) -> None:
    """Any size, ratio, orientation and scale: scaling one channel gives the bytes of all three."""
    samples = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    image, spec = Image.fromarray(samples), PreprocessSpec(resize=crop + margin, crop=crop)
    exif = Image.Exif()
    exif[0x0112] = turn
    got = preprocess(encode(image, exif=exif), spec)
    assert got.shape == (crop, crop, 3)
    assert (got == preprocess(encode(image.convert("RGB"), exif=exif), spec)).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_decoded_image_is_not_copied(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greyscale and RGB are scaled as they are decoded: a copy would double the peak memory."""
    copied = []
    for name in ("convert", "copy", "crop"):
        method = getattr(Image.Image, name)

        def copy(image: Image.Image, *args: Any, method: Any = method, **options: Any) -> Any:
            copied.append(image.size)
            return method(image, *args, **options)

        monkeypatch.setattr(Image.Image, name, copy)
    content = encode(gradient(200, 160).convert(mode))
    copied.clear()
    preprocess(content, SPEC)
    assert (200, 160) not in copied


def sixteen_bits(order: str) -> bytes:
    """Return 24 x 20 samples that rise by rows over the whole range."""
    return np.linspace(0, 65_535, 480).astype(order + "u2").tobytes()


DEEP: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: grey_png(sixteen_bits(">"), width=24, height=20, depth=16),
    "TIFF": lambda: grey_tiff(sixteen_bits("<"), width=24, height=20, depth=16),
    "big-endian TIFF": lambda: grey_tiff(
        sixteen_bits(">"), width=24, height=20, depth=16, big_endian=True
    ),
    "TIFF of 32-bit samples": lambda: encode(
        Image.fromarray(np.linspace(0, 65_535, 480).astype(np.int32).reshape(20, 24)), "TIFF"
    ),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_greyscale_becomes_upper_bits(kind: str) -> None:
    """16-bit samples give the picture of their upper 8 bits, without clipping to white."""
    upper = (np.linspace(0, 65_535, 480).astype(np.uint16) >> 8).astype(np.uint8).reshape(20, 24)
    pixels = preprocess(DEEP[kind](), DEPTH)
    assert (pixels == preprocess(encode(Image.fromarray(upper)), DEPTH)).all()
    assert close(pixels.mean(), 127, within=3)


@pytest.mark.parametrize(
    ("highest", "bits"),
    [(1, 8), (255, 8), (256, 10), (1_023, 10), (1_024, 12), (4_095, 12), (4_096, 14),
     (16_383, 14), (16_384, 16), (65_535, 16)],
)  # fmt: skip
def test_depth_is_the_smallest_that_holds_the_samples(highest: int, bits: int) -> None:
    """Samples of 10, 12 or 14 bits in a container of 16 give the upper 8 of those bits."""
    samples = np.linspace(0, highest, 480).astype(np.uint16)
    upper = (samples >> (bits - 8)).astype(np.uint8).reshape(20, 24)
    want = preprocess(encode(Image.fromarray(upper)), DEPTH)
    for content in (
        grey_png(samples.astype(">u2").tobytes(), width=24, height=20, depth=16),
        grey_tiff(samples.astype("<u2").tobytes(), width=24, height=20, depth=16),
        grey_tiff(samples.astype(">u2").tobytes(), width=24, height=20, depth=16, big_endian=True),
        encode(Image.fromarray(samples.astype(np.int32).reshape(20, 24)), "TIFF"),
    ):
        assert (preprocess(content, DEPTH) == want).all()


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(
    ("lowest", "highest", "offset", "bits"),
    [
        (-1_024, 3_071, 1_024, 12),  # Hounsfield units
        (-1_000, 400, 1_024, 12),
        (-2_000, 3_071, 2_048, 14),
        (0, 4_095, 0, 12),
        (-1, 254, 1, 8),
        (-32_768, 32_767, 32_768, 16),
    ],
)
def test_signed_samples_do_not_wrap_around(
    lowest: int, highest: int, offset: int, bits: int, *, big_endian: bool
) -> None:
    """Adding a power of two makes signed samples positive before the depth is chosen."""
    samples = np.linspace(lowest, highest, 480).round().astype(int)
    order = ">" if big_endian else "<"
    content = grey_tiff(
        samples.astype(order + "i2").tobytes(),
        width=24,
        height=20,
        depth=16,
        signed=True,
        big_endian=big_endian,
    )
    upper = ((samples + offset) >> (bits - 8)).astype(np.uint8).reshape(20, 24)
    want = preprocess(encode(Image.fromarray(upper)), DEPTH)
    assert (preprocess(content, DEPTH) == want).all()


def test_signed_bytes_do_not_wrap_around() -> None:
    """In a TIFF of signed 8-bit samples the lowest sample is black."""
    samples = np.linspace(-128, 127, 480).round().astype(np.int8)
    content = grey_tiff(samples.tobytes(), width=24, height=20, depth=8, signed=True)
    upper = (samples.astype(int) + 128).astype(np.uint8).reshape(20, 24)
    assert (preprocess(content, DEPTH) == preprocess(encode(Image.fromarray(upper)), DEPTH)).all()


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("depth", [1, 8, 12, 16])
def test_white_is_zero_tiff_is_inverted(depth: int, *, deflated: bool) -> None:
    """The result is the inverse of that of the black-is-zero TIFF."""
    if depth == 1:
        samples = np.random.default_rng(0).integers(0, 256, 60, dtype=np.uint8).tobytes()
    else:
        dtype = "u1" if depth == 8 else "<u2"
        samples = np.linspace(0, 2**depth - 1, 480).astype(dtype).tobytes()
    options: dict[str, Any] = {
        "width": 24,
        "height": 20,
        "depth": 16 if depth == 12 else depth,
        "deflated": deflated,
    }
    black_is_zero = preprocess(grey_tiff(samples, **options), SPEC)
    white_is_zero = preprocess(grey_tiff(samples, **options, white_is_zero=True), SPEC)
    assert black_is_zero.std() > 30
    assert close(white_is_zero, 255 - black_is_zero.astype(int), within=1)


def test_twelve_packed_bits_are_decoded() -> None:
    """A TIFF that packs two samples of 12 bits into 3 bytes has a depth of at least 12."""
    samples = np.linspace(0, 800, 480).astype(int).reshape(-1, 2)
    packed = (samples[:, 0] << 12 | samples[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)
    content = grey_tiff(packed[:, 1:].tobytes(), width=24, height=20, depth=12)
    upper = (samples >> 4).astype(np.uint8).reshape(20, 24)
    assert (preprocess(content, DEPTH) == preprocess(encode(Image.fromarray(upper)), DEPTH)).all()


@pytest.mark.parametrize(("lowest", "highest"), [(0, 65_536), (-1, 65_535), (-70_000, 9)])
def test_samples_beyond_16_bits_are_refused(lowest: int, highest: int) -> None:
    """The error has the range of the 32-bit samples."""
    samples = np.linspace(lowest, highest, 480).round().astype(np.int32).reshape(20, 24)
    with pytest.raises(ImageError, match=f"samples from {lowest} to {highest}; 16 bits"):
        preprocess(encode(Image.fromarray(samples), "TIFF"), SPEC)


def test_deep_colours_become_upper_bits() -> None:
    """A PNG of 16 bits per channel gives the upper 8 bits."""
    rgb = struct.pack(">HHH", 0x4000, 0x8000, 0xC0FF) * 4
    content = grey_png(rgb * 4, width=4, height=4, depth=16).replace(
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 0, 0, 0, 0)),
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)),
    )
    assert close(preprocess(content, SPEC), (0x40, 0x80, 0xC0), within=1)


def transparent(mode: str) -> bytes:
    """Return a picture of RED (or grey 100) that is half or fully transparent."""
    if mode == "RGBA":
        return encode(Image.new("RGBA", (24, 20), (*RED, 128)))
    if mode == "RGBA WebP":
        return encode(Image.new("RGBA", (24, 20), (*RED, 128)), "WEBP", lossless=True, exact=True)
    if mode == "LA":
        return encode(Image.new("LA", (24, 20), (100, 128)))
    image = plain(RED).quantize(2)
    if mode == "GIF":
        return encode(image, "GIF", transparency=image.getpixel((0, 0)))
    alphas = bytes([128, 128])
    return encode(image, transparency=alphas)


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("RGBA", (237, 132, 137)),
        ("RGBA WebP", (237, 132, 137)),
        ("LA", (177, 177, 177)),
        ("P", (237, 132, 137)),
        ("GIF", (255, 255, 255)),
    ],
)
def test_transparency_is_composited_on_white(mode: str, want: tuple[int, int, int]) -> None:
    """Pixels are mixed with white by their alpha, in every mode."""
    assert close(preprocess(transparent(mode), SPEC), want)


def test_transparent_deep_grey_is_white() -> None:
    """The transparent sample of a 16-bit greyscale PNG becomes white."""
    content = grey_png(
        struct.pack(">H", 0x4000) * 16,
        width=4,
        height=4,
        depth=16,
        extra=png_chunk(b"tRNS", struct.pack(">H", 0x4000)),
    )
    assert close(preprocess(content, SPEC), (255, 255, 255))


def test_transparent_sample_does_not_affect_depth() -> None:
    """The depth is that of the visible samples, even if the transparent sample is brighter."""
    content = grey_png(
        struct.pack(">16H", *[0x0800] * 15, 0xFFFF),
        width=4,
        height=4,
        depth=16,
        extra=png_chunk(b"tRNS", struct.pack(">H", 0xFFFF)),
    )
    pixels = preprocess(content, PreprocessSpec(resize=4, crop=4, deep_grey="depth"))
    assert close(pixels[:3], 0x80)
    assert close(pixels[3, 3], 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 5_000), (5_000, 1), (2, 3), (300, 17)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_shape_fills_the_square(size: tuple[int, int], kind: str) -> None:
    """Single pixels and very long pictures give a full square of their colour."""
    pixels = preprocess(encode(plain(RED, size), kind), SPEC)
    assert pixels.shape == (16, 16, 3)
    assert close(pixels, RED, within=4)


# Geometry


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_pictures_are_upright(kind: str, orientation: int) -> None:
    """The EXIF orientation is applied."""
    upright = gradient(36, 24)
    want = preprocess(encode(upright), SPEC)
    assert close(
        preprocess(turned(upright, orientation, kind), SPEC),
        want,
        within=1 if kind in {"PNG", "WEBP", "TIFF"} else 3,
    )


@pytest.mark.parametrize("orientation", STORED_AS)
def test_pictures_are_upright_when_scaled_in_the_decoder(orientation: int) -> None:
    """The orientation of a large JPEG, decoded at an eighth of its size, is applied too."""
    upright = gradient(487, 331)
    want = preprocess(encode(upright), SPEC)
    assert close(preprocess(turned(upright, orientation, "JPEG"), SPEC), want, within=5)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_unknown_orientation_is_ignored(orientation: int) -> None:
    """An orientation outside of 1 to 8 leaves the picture as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = preprocess(encode(gradient(36, 24), exif=exif), SPEC)
    assert (pixels == preprocess(encode(gradient(36, 24)), SPEC)).all()


@pytest.mark.parametrize("size", [(256, 256), (256, 144), (144, 256), (97, 211), (30, 45)])
@pytest.mark.parametrize("spec", [(72, 64), (40, 40), (90, 30)])
def test_gradient_has_expected_values(size: tuple[int, int], spec: tuple[int, int]) -> None:
    """Output pixel i is the source at (i - (crop - 1) / 2) * short / resize from the centre."""
    resize, crop = spec
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    content = encode(Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)))
    pixels = preprocess(content, PreprocessSpec(resize=resize, crop=crop))
    along = (np.arange(crop) - (crop - 1) / 2) * min(size) / resize
    red, green = along + (width - 1) / 2, along + (height - 1) / 2
    # The filter's support is cut off at the edges, so the outermost pixels deviate.
    inside = slice(3, -3)
    got = pixels[inside, inside].astype(float)
    np.testing.assert_allclose(got[..., 0], np.tile(red[inside], (crop - 6, 1)), atol=1)
    np.testing.assert_allclose(got[..., 1].T, np.tile(green[inside], (crop - 6, 1)), atol=1)
    np.testing.assert_allclose(got[..., 2], 255 - got[..., 0], atol=1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(300, 300), (640, 427), (333, 1000), (50, 90)])
def test_result_equals_scale_then_crop(
    size: tuple[int, int], kind: str, interpolation: str
) -> None:
    """Cropping before scaling gives nearly the result of scaling before cropping."""
    width, height = size
    resize, crop = 72, 64
    scale = resize / min(size)
    x, y = np.meshgrid(np.arange(width) * scale, np.arange(height) * scale)
    waves = [np.sin(x / 5), np.sin(y / 6), np.sin((x + y) / 7)]
    image = Image.fromarray((127 + 100 * np.stack(waves, axis=2)).astype(np.uint8))
    full = image.resize(
        (round(width * scale), round(height * scale)),
        {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation],
    )
    left, top = (full.width - crop) / 2, (full.height - crop) / 2
    want = np.asarray(full.crop((int(left), int(top), int(left) + crop, int(top) + crop)))
    spec = PreprocessSpec(resize=resize, crop=crop, interpolation=interpolation)  # type: ignore[arg-type]  # parametrised
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    got = preprocess(encode(image, kind, **options), spec)
    error = np.abs(got.astype(int) - want)
    # The offset of half a scaled pixel changes values by up to 10.
    assert error.max() <= 14
    assert error.mean() <= 4


def test_interpolation_of_the_spec_is_used() -> None:
    """Bilinear and bicubic scaling give different pixels."""
    content = encode(gradient(9, 7).quantize(3))
    bilinear, bicubic = (
        preprocess(content, PreprocessSpec(resize=20, crop=16, interpolation=interpolation))
        for interpolation in ("bilinear", "bicubic")
    )
    assert (bilinear != bicubic).any()


# Digest


def test_pixel_digest_ignores_container_and_metadata() -> None:
    """Files with the same pixels have the same digest."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    files = [
        encode(gradient(36, 24)),
        encode(gradient(36, 24), exif=exif, compress_level=1),
        encode(gradient(36, 24), "WEBP", lossless=True),
        encode(gradient(36, 24), "BMP"),
    ]
    assert len({pixel_digest(preprocess(content, SPEC)) for content in files}) == 1


def test_pixel_digest_depends_on_every_sample() -> None:
    """A difference of 1 in a single sample changes the digest."""
    pixels = preprocess(encode(gradient(36, 24)), SPEC)
    other = pixels.copy()
    other[15, 15, 2] ^= 1
    assert pixel_digest(other) != pixel_digest(pixels)


# Arbitrary and damaged files


def check_anything(content: bytes, limits: InputLimits = DEFAULT_LIMITS) -> None:
    """Assert that ``content`` gives pixels or ImageError."""
    try:
        pixels = preprocess(content, SPEC, limits=limits)
    except ImageError:
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


MAGIC = [
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\1\0\0WEBPVP8 ",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0+\0\x08\0\0",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x80meta\0\0\0\0",
    b"\xff\x4f\xff\x51\0\x2f\0\0",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"P3 4 4 255\n",
    b"P4 4 4\n",
]


@pytest.mark.slow
@settings(max_examples=300)
@given(st.sampled_from([b"", *MAGIC]), st.binary(max_size=300))
def test_arbitrary_bytes_are_pixels_or_an_image_error(magic: bytes, rest: bytes) -> None:
    """Arbitrary bytes, with or without a signature before them, raise nothing but ImageError."""
    check_anything(magic + rest)


def valid() -> dict[str, bytes]:
    """Return a file of each format and of its main variants, with metadata."""
    rng = np.random.default_rng(1)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (24, 36, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    frames: dict[str, Any] = {"save_all": True, "append_images": [plain(RED, (36, 24))]}
    return {
        "JPEG": encode(rgb, "JPEG", exif=exif),
        "progressive JPEG": encode(rgb, "JPEG", progressive=True, dpi=(72, 72)),
        "CMYK JPEG": encode(rgb.convert("CMYK"), "JPEG"),
        "two JPEGs in one": encode(rgb, "MPO", **frames),
        "PNG": encode(rgb, exif=exif),
        "palette PNG": encode(rgb.quantize(16), transparency=bytes(range(16))),
        "16-bit PNG": DEEP["PNG"](),
        "animated PNG": encode(rgb, **frames),
        "WebP": encode(rgba, "WEBP", exif=exif),
        "lossless WebP": encode(rgba, "WEBP", lossless=True),
        "animated WebP": encode(rgb, "WEBP", **frames),
        "GIF": encode(rgb, "GIF", comment="no comment", **frames),
        "BMP": encode(rgb, "BMP"),
        "palette BMP": encode(rgb.quantize(16), "BMP"),
        "TIFF": encode(rgb, "TIFF", exif=exif),
        "16-bit TIFF": DEEP["TIFF"](),
        "signed TIFF": grey_tiff(
            np.arange(-480, 480, 2).astype("<i2").tobytes(),
            width=24,
            height=20,
            depth=16,
            signed=True,
        ),
        "12-bit TIFF": grey_tiff(bytes(range(240)) * 3, width=24, height=20, depth=12),
        "LZW TIFF": encode(rgb, "TIFF", compression="tiff_lzw"),
        "JPEG TIFF": encode(rgb, "TIFF", compression="jpeg"),
        "16-bit planes in a TIFF": tiff(
            rng.integers(0, 65_536, (24, 36, 3), dtype=np.uint16), RGB, planar=True, rows=9
        ),
        "BigTIFF": tiff(np.asarray(rgb), RGB, bigtiff=True, deflated=True),
        "HEIC": heic(rgba, 6),
        "grid of HEIC": grid(heic(plain(RED, (64, 64))), 2, 1, (120, 60)),
        "AVIF": encode(rgba, "AVIF", exif=exif),
        "animated AVIF": encode(rgb, "AVIF", **frames),
        "JPEG 2000": encode(rgb, "JPEG2000"),
        "JPEG 2000 codestream": encode(rgb, "JPEG2000", no_jp2=True, tile_size=(16, 16)),
        "PPM": encode(rgb, "PPM"),
        "plain PGM": b"P2 6 4 900 # a comment\n" + b" ".join(b"%d" % n for n in range(0, 888, 37)),
    }


VALID = valid()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a valid file with bytes changed, deleted or inserted, or with its end cut off."""
    content = bytearray(VALID[draw(st.sampled_from(sorted(VALID)))])
    for _ in range(draw(st.integers(1, 4))):
        # Half of the damage is in the header, as decoders branch there.
        at = draw(st.integers(0, 80) | st.integers(0, len(content)))
        match draw(st.sampled_from(["change", "change", "change", "cut out", "put in", "cut off"])):
            case "change":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut out":
                del content[at : at + draw(st.integers(1, 16))]
            case "put in":
                content[at:at] = draw(st.binary(min_size=1, max_size=4))
            case _:
                del content[at:]
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VALID)
def test_damaged_files_are_decoded_or_refused_fast(kind: str) -> None:
    """Files that are cut off, or have a bit flipped or 4 bytes overwritten, take bounded time."""
    whole = VALID[kind]
    rng = np.random.default_rng(len(whole))
    for at in [*range(0, len(whole), max(1, len(whole) // 40)), *rng.integers(0, len(whole), 40)]:
        flipped, overwritten = bytearray(whole), bytearray(whole)
        flipped[at] ^= 1 << rng.integers(8)
        overwritten[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff" * 4, rng.bytes(4)])
        for content in (whole[:at], bytes(flipped), bytes(overwritten)):
            start = time.process_time()
            check_anything(content, InputLimits(max_image_pixels=1_000_000))
            assert time.process_time() - start < 5


@pytest.mark.slow
@settings(max_examples=1500)
@given(damaged())
def test_damaged_files_are_pixels_or_an_image_error(content: bytes) -> None:
    """Damaged files raise nothing but ImageError."""
    check_anything(content)


DAMAGED_METADATA = {
    "EXIF cut short": encode(plain(RED), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"),
    "EXIF beyond its end": encode(
        plain(RED),
        exif=b"Exif\0\0" + struct.pack("<4sIHHHIII", b"II*\0", 8, 1, 0x010F, 2, 99, 9999, 0),
    ),
    "no second JPEG": encode(plain(RED), "MPO", save_all=True, append_images=[plain(BLUE)]).replace(
        struct.pack("<HHII", 0xB001, 4, 1, 2), struct.pack("<HHII", 0xB001, 4, 1, 9)
    ),
    "an animation of no frames": encode(
        plain(RED), save_all=True, append_images=[plain(BLUE)]
    ).replace(
        png_chunk(b"acTL", struct.pack(">II", 2, 0)), png_chunk(b"acTL", struct.pack(">II", 0, 0))
    ),
}


@pytest.mark.parametrize("kind", DAMAGED_METADATA)
def test_damaged_metadata_is_ignored(kind: str) -> None:
    """An intact picture with damaged metadata is decoded without a warning."""
    assert close(preprocess(DAMAGED_METADATA[kind], SPEC), RED, within=5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_region_is_a_part_of_the_upright_image(orientation: int) -> None:
    """A central square, whose sides are exchanged with those of the image."""
    tags = Image.Exif()
    tags[274] = orientation
    image = Image.new("RGB", (80, 40))
    content = encode(image, "PNG", exif=tags)
    prepared = prepare(content, PreprocessSpec(resize=20, crop=10))
    upright_size = (40, 80) if orientation > 4 else (80, 40)
    left, top, right, bottom = prepared.region
    assert ((right - left) * upright_size[0], (bottom - top) * upright_size[1]) == (20, 20)
    assert (left + right, top + bottom) == (1, 1)
    assert upright(content, 20).size == ((10, 20) if orientation > 4 else (20, 10))
