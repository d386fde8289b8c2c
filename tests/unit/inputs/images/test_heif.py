"""HEIC and AVIF: decoding, and refusal of files with a hidden decoding cost."""

from __future__ import annotations

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image
from support.bad_images import gradient, plain
from support.heifs import assembled, coded, deep_heic, grid, heic
from support.pictures import encode

from topwork.errors import ImageError
from topwork.inputs.image import preprocess
from topwork.inputs.images.coded import av1_passes, hevc_passes
from topwork.inputs.images.isobmff import ImageItem, box
from topwork.inputs.images.work import Steps
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

SPEC = PreprocessSpec(resize=20, crop=16)
RED = (220, 10, 20)
KINDS = ["HEIF", "AVIF"]


def close(got: np.ndarray, want: object, within: int = 3) -> bool:
    """Return True if all pixels differ from ``want`` by at most ``within``."""
    return bool((np.abs(got.astype(int) - np.asarray(want)) <= within).all())


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_is_composited_on_white(kind: str) -> None:
    """The alpha plane is an item of its own."""
    image = Image.new("RGBA", (64, 48), (*RED, 128))
    assert close(preprocess(encode(image, kind), SPEC), (237, 132, 137))


@pytest.mark.parametrize("kind", KINDS)
def test_greyscale_is_decoded(kind: str) -> None:
    """A greyscale picture becomes RGB with equal channels."""
    image = gradient(64, 48).convert("L")
    assert close(preprocess(encode(image, kind), SPEC), preprocess(encode(image), SPEC))


def test_ten_bits_become_upper_eight() -> None:
    """A HEIC of 10 bits, as phones write HDR, gives the upper 8 bits."""
    samples = np.zeros((48, 64, 3), "<u2")
    samples[..., 0] = np.linspace(0, 65_535, 64)
    content = deep_heic("RGB;16", (64, 48), samples.tobytes())
    want = Image.fromarray((samples >> 8).astype(np.uint8))
    assert close(preprocess(content, SPEC), preprocess(encode(want), SPEC))


@pytest.mark.parametrize("kind", KINDS)
def test_exif_orientation_is_ignored(kind: str) -> None:
    """Only item properties rotate the picture; EXIF, intact or damaged, does not."""
    upright = gradient(36, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    name, content, properties = coded(encode(upright, kind))
    for metadata in (struct.pack(">I", 6) + exif.tobytes(), b"", bytes(9)):
        item: ImageItem = (b"Exif", metadata, [])
        file = assembled([(name, content, properties), item], [(b"cdsc", 2, [1])])
        assert close(preprocess(file, SPEC), preprocess(encode(upright), SPEC))


@pytest.mark.parametrize("kind", KINDS)
def test_grid_is_assembled(kind: str) -> None:
    """The tiles of a grid, as phones write large pictures, are joined and cropped to its size."""
    content = grid(encode(plain(RED, (64, 64)), kind), 3, 2, (190, 120))
    assert close(preprocess(content, SPEC), RED)


def test_typical_phone_file_is_decoded() -> None:
    """Tiles, rotation, thumbnail, a gain map of another coding, EXIF, XMP and a colour profile."""
    sides = {
        (x, y): gradient(128, 128).crop((x, y, x + 64, y + 64)) for y in (0, 64) for x in (0, 64)
    }
    tiles = [coded(heic(tile)) for tile in sides.values()]
    size = (b"ispe", struct.pack(">III", 0, 128, 128))
    payload = struct.pack(">BBBBHH", 0, 0, 1, 1, 128, 128)
    properties = [size, (b"colr", b"prof" + bytes(500)), (b"irot", b"\3"), (b"pasp", bytes(8))]
    file = assembled(
        [
            *tiles,
            (b"grid", payload, properties),
            coded(heic(plain(RED, (16, 16)))),
            (b"jpeg", b"\xff\xd8", [(b"auxC", bytes(4) + b"urn:com:apple:photo:gainmap\0")]),
            (b"Exif", bytes(90), []),
            (b"mime", b"<x:xmpmeta/>", []),
        ],
        [(b"dimg", 5, [1, 2, 3, 4]), (b"thmb", 6, [5]), (b"auxl", 7, [5]), (b"cdsc", 8, [5]),
         (b"cdsc", 9, [5])],
        primary=5,
    )  # fmt: skip
    want = gradient(128, 128).transpose(Image.Transpose.ROTATE_270)
    assert close(preprocess(file, SPEC), preprocess(encode(want), SPEC))


def test_brand_is_ignored() -> None:
    """The item's coding decides, even if the brand is of the other format."""
    for kind, brand in (("HEIF", b"avif"), ("AVIF", b"heic"), ("AVIF", b"mif1")):
        content = encode(plain(RED, (64, 64)), kind)
        assert close(preprocess(content[:8] + brand + content[12:], SPEC), RED)


def test_animated_avif_gives_its_still() -> None:
    """An AVIF sequence gives its primary item."""
    frames = [plain(colour) for colour in ((20, 10, 220), (20, 220, 10))]
    content = encode(plain(RED), "AVIF", save_all=True, append_images=frames)
    assert content[8:12] == b"avis"
    assert close(preprocess(content, SPEC), RED, within=6)


def test_sequence_without_still_is_refused() -> None:
    """A file with only tracks has no items."""
    content = box(b"ftyp", b"avis" + bytes(4) + b"avis") + box(b"moov", bytes(8))
    with pytest.raises(ImageError, match="no items"):
        preprocess(content, SPEC)


def test_decoders_run_in_one_thread() -> None:
    """The server already has a thread per core."""
    import pi_heif

    preprocess(heic(plain(RED)), SPEC)
    assert pi_heif.options.DECODE_THREADS == 1
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1


# Decoding cost


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (345, 234), (1_920, 1_080)])
def test_coded_sizes_are_read(size: tuple[int, int]) -> None:
    """The coded size in the headers is at least the size of the picture, and little more."""
    _, content, properties = coded(heic(plain(RED, size)))
    hevc, slices = hevc_passes(dict(properties)[b"hvcC"], content, Steps())
    av1, frames = av1_passes(coded(encode(plain(RED, size), "AVIF"))[1], Steps())
    assert (slices, frames) == (1, 1)
    for pixels in (hevc, av1):
        assert size[0] * size[1] <= pixels <= (size[0] + 63) * (size[1] + 63)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_coded_size_above_claimed_size_is_refused(kind: str) -> None:
    """A file that claims 8 x 8 pixels and has a million coded pixels is refused."""
    name, content, properties = coded(encode(plain(RED, (1_000, 1_000)), kind))
    lie = [(b"ispe", struct.pack(">III", 0, 8, 8)) if key == b"ispe" else (key, value)
           for key, value in properties]  # fmt: skip
    with pytest.raises(ImageError, match="tiles of over 300000 pixels") as caught:
        preprocess(
            assembled([(name, content, lie)]), SPEC, limits=InputLimits(max_image_pixels=100_000)
        )
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_tile_is_counted_each_time(kind: str) -> None:
    """900 references to a single coded picture cost as much as 900 pictures."""
    content = grid(encode(plain(RED, (512, 512)), kind), 30, 30, (100, 100))
    limits = InputLimits(max_image_pixels=1_000_000)
    with pytest.raises(ImageError, match="tiles of over 3000000 pixels") as caught:
        preprocess(content, SPEC, limits=limits)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_item_of_many_pictures_is_refused() -> None:
    """A decoder would decode all 100 HEVC pictures of an item."""
    name, content, properties = coded(heic(plain(RED, (64, 64))))
    with pytest.raises(ImageError, match="still of 100 pictures"):
        preprocess(assembled([(name, content * 100, properties)]), SPEC)


def test_item_of_many_slices_is_refused() -> None:
    """Each slice may cover the whole picture, so a thousand slices are a thousand passes."""
    name, content, properties = coded(heic(plain(RED, (512, 512))))
    follower = content[:6] + bytes([content[6] & 0x7F]) + content[7:]
    limits = InputLimits(max_image_pixels=1_000_000)
    with pytest.raises(ImageError, match="slices or frames of over 8000000 pixels"):
        preprocess(assembled([(name, content + follower * 1_000, properties)]), SPEC, limits=limits)


def test_item_of_many_frames_is_refused() -> None:
    """A decoder may decode all 100 AV1 frames of an item."""
    name, content, properties = coded(encode(plain(RED, (64, 64)), "AVIF"))
    with pytest.raises(ImageError, match="has 100 frames of 4096 pixels"):
        preprocess(assembled([(name, content * 100, properties)]), SPEC)


def test_nested_derivations_are_refused() -> None:
    """Derived pictures that multiply by 20 at each level, or refer to themselves, are refused."""
    tile = coded(heic(plain(RED, (64, 64))))
    payload = struct.pack(">BBBBHH", 0, 0, 3, 4, 64, 64)
    level = [tile, *[(b"grid", payload, [])] * 60]
    references = [(b"dimg", 2 + n, [1] * 20) for n in range(20)]
    references += [(b"dimg", 22 + n, list(range(2, 22))) for n in range(20)]
    references += [(b"dimg", 42 + n, list(range(22, 42))) for n in range(20)]
    with pytest.raises(ImageError, match="composed of over"):
        preprocess(assembled(level, references, primary=42), SPEC)
    loop = [tile, (b"iden", b"", [])]
    with pytest.raises(ImageError, match="composed of over"):
        preprocess(assembled(loop, [(b"dimg", 2, [2])], primary=2), SPEC)


def test_grid_canvas_above_limit_is_refused() -> None:
    """The canvas size in the grid counts, however few tiles it has."""
    content = grid(heic(plain(RED, (64, 64))), 2, 2, (60_000, 60_000))
    with pytest.raises(ImageError, match="60000 x 60000") as caught:
        preprocess(content, SPEC)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("kind", [b"jpeg", b"iovl", b"unci", b"vvc1"])
def test_unsupported_coding_is_named(kind: bytes) -> None:
    """The error names the coding of the item."""
    with pytest.raises(ImageError, match=f"coded as '{kind.decode()}'; supported are"):
        preprocess(assembled([(kind, bytes(40), [])]), SPEC)


@pytest.mark.slow
def test_compressed_metadata_is_never_inflated() -> None:
    """Metadata that unpacks to 256 MiB takes no time and does not affect the picture."""
    bomb = zlib.compress(bytes(256 * 2**20), 9)
    content = assembled([coded(heic(plain(RED))), (b"mime", bomb, [])], [(b"cdsc", 2, [1])])
    # The library expects the compression method after the kind of the item.
    infe = content.index(b"mime", content.index(b"iinf"))
    assert content[infe : infe + 4] == b"mime"
    start = time.process_time()
    assert close(preprocess(content, SPEC), RED)
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_file_is_refused(kind: str) -> None:
    """A file that ends early at any offset is an ImageError."""
    content = assembled([coded(encode(gradient(64, 48), kind))])
    for end in range(12, len(content) - 1, 7):
        with pytest.raises(ImageError):
            preprocess(content[:end], SPEC)


FLOOD = 200_000


def items(*boxes: bytes, count: int = 1, trailing: bytes = b"") -> bytes:
    """Return a file of ``count`` items without content, and of other boxes in ``meta``."""
    kinds = [
        box(b"infe", struct.pack(">BxxxHH4sx", 2, 1 + item, 0, b"hvc1")) for item in range(count)
    ]
    return box(b"ftyp", b"heic" + bytes(4) + b"mif1") + box(
        b"meta",
        bytes(4),
        box(b"pitm", struct.pack(">4xH", 1)),
        box(b"iinf", struct.pack(">4xH", count), *kinds),
        *boxes,
        trailing,
    )


@pytest.mark.slow
def test_structure_floods_are_refused() -> None:
    """Parsing stops after a limited number of boxes, items, references and properties."""
    intact = heic(plain(RED))
    nowhere = box(b"iloc", struct.pack(">4xBBH", 0x44, 0, 0))
    located = struct.pack(">B3xBBI", 2, 0, 0, FLOOD) + b"".join(
        struct.pack(">I6x", item) for item in range(FLOOD)
    )
    # Each claims 65,535 targets, whose bytes are those of the following boxes.
    references = [box(b"dimg", struct.pack(">HH", item, 0xFFFF)) for item in range(1_000)]
    associated = box(b"ipma", struct.pack(">II", 0, 10_000))
    size = box(b"ispe", bytes(12))
    for content in (
        intact[: intact.index(b"meta") - 4] + box(b"free", b"") * FLOOD,
        items(box(b"iloc", located)),
        items(nowhere, box(b"iref", bytes(4), *references), trailing=bytes(FLOOD)),
        items(nowhere, box(b"iprp", *[associated] * 10), trailing=bytes(FLOOD)),
        items(nowhere, box(b"iprp", box(b"ipco", size * FLOOD))),
    ):
        start = time.process_time()
        with pytest.raises(ImageError, match="too many parts"):
            preprocess(content, SPEC)
        assert time.process_time() - start < 0.5


@pytest.mark.slow
def test_tiles_of_many_parts_are_refused() -> None:
    """The cost of parsing all tiles' headers is limited, even if tiles share them."""
    name, content, properties = coded(heic(plain(RED, (64, 64))))
    header = dict(properties)[b"hvcC"]
    units = struct.pack(">BH", 39, 10_000) + bytes(20_000)
    long = header[:22] + bytes([header[22] + 50]) + header[23:] + units * 50
    empty = struct.pack(">IHH", 4, 0x4E01, 0)
    for parts in (
        [(name, content + struct.pack(">I", index), [(b"hvcC", long)]) for index in range(50)],
        [(name, content + empty * (4_000 + index), [(b"hvcC", header)]) for index in range(50)],
    ):
        grid_of: ImageItem = (b"grid", struct.pack(">BBBBHH", 0, 0, 4, 9, 640, 320), [])
        file = assembled([*parts, grid_of], [(b"dimg", 51, list(range(1, 51)))], primary=51)
        start = time.process_time()
        with pytest.raises(ImageError, match="too many parts"):
            preprocess(file, SPEC)
        assert time.process_time() - start < 0.5
