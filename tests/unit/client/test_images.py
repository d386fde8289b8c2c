"""Images as bytes, path or open file, and their display names."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from topwork.client import async_calls, blocking_calls
from topwork.client.calls import classify_request
from topwork.client.images import ImageLike, NamedImage, check_several, content, named
from topwork.client.inputs import Audio, Content, Embedding, embeddings, to_input
from topwork.v1 import input_pb2 as input_pb

UNREADABLE = "/proc/self/mem"
"""A file that opens and cannot be read, even by root."""


def test_content_of_path_text_file_and_bytes_is_the_same(tmp_path: Path) -> None:
    """All kinds of sources give the bytes of the image."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"photo")
    with path.open("rb") as file:
        sources: list[ImageLike] = [b"photo", path, str(path), file, io.BytesIO(b"photo")]
        assert [content(source) for source in sources] == [b"photo"] * 5


def test_name_is_that_of_the_pair_or_the_path(tmp_path: Path) -> None:
    """A pair has its own name, a file its path, escaped; bytes have an empty name."""
    path = tmp_path / "a\nb.png"
    path.touch()
    escaped = f"{tmp_path}/a\\u000ab.png"
    with path.open("rb") as file:
        images: list[NamedImage] = [("mine", path), path, str(path), file, b"photo", io.BytesIO()]
        names = [named(image)[0] for image in images]
    assert names == ["mine", escaped, escaped, escaped, "", ""]


@pytest.mark.parametrize("path", ["missing.png", ".", UNREADABLE])
def test_error_of_reading_names_the_file(path: str) -> None:
    """Reading a missing path, a folder or an unreadable file raises OSError with the path."""
    with pytest.raises(OSError, match=rf": '{path}'$"):
        content(path)


def test_error_of_reading_an_open_file_names_it() -> None:
    """The OSError has the path of the file, as that of a path has."""
    with open(UNREADABLE, "rb") as file, pytest.raises(OSError, match=UNREADABLE):  # noqa: PTH123  # as callers do
        content(file)


def test_text_file_is_refused(tmp_path: Path) -> None:
    """The TypeError names the file that was opened without ``b``."""
    path = tmp_path / "photo.png"
    path.write_text("photo")
    with path.open() as file, pytest.raises(TypeError, match=r"photo\.png' is not open in binary"):
        content(file)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("image", [7, None, [b"photo"]])
def test_other_types_are_refused(image: Any) -> None:
    """The TypeError names the type."""
    with pytest.raises(TypeError, match=f"an image is {type(image).__name__}: pass"):
        content(image)


@pytest.mark.parametrize("images", [b"photo", "photo.png", Path("photo.png"), io.BytesIO(), None])
def test_contents_refuses_a_single_image(images: Any) -> None:
    """Neither client iterates over the letters of a path or the lines of a file."""
    for call in (blocking_calls.contents, lambda images: asyncio.run(async_calls.contents(images))):
        with pytest.raises(TypeError, match=f"images is {type(images).__name__}: pass a list"):
            call(images)


def test_contents_takes_any_iterable(tmp_path: Path) -> None:
    """Both clients read generators; the client for asyncio also reads asynchronous generators."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"from a file")

    def source() -> Iterator[bytes | Path]:
        yield b"from memory"
        yield path

    async def asynchronous_source() -> AsyncIterator[bytes | Path]:
        for image in source():
            yield image

    wanted = [b"from memory", b"from a file"]
    assert blocking_calls.contents(source()) == wanted
    assert asyncio.run(async_calls.contents(source())) == wanted
    assert asyncio.run(async_calls.contents(asynchronous_source())) == wanted


def decoded(encoded: Content) -> NDArray[np.uint8]:
    """Return the pixels of an encoded image, upright."""
    assert isinstance(encoded, bytes)
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))


def _in_rgb(encoded: Content) -> NDArray[np.uint8]:
    assert isinstance(encoded, bytes)
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4)])
def test_array_is_encoded_without_loss(shape: tuple[int, ...]) -> None:
    """RGB and greyscale, also if the array is not contiguous."""
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for sent in (array, array[::-1, ::2]):
        assert np.array_equal(decoded(content(sent)), sent)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_image_of_pillow_is_encoded_without_loss(mode: str) -> None:
    """A mode that PNG lacks becomes RGB, as in the server."""
    colours = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = Image.fromarray(colours).convert(mode)
    expected = image.convert("RGB")
    assert np.array_equal(decoded(content(image)), np.asarray(image)) or mode in {"CMYK", "YCbCr"}
    assert np.array_equal(_in_rgb(content(image)), np.asarray(expected))


def test_orientation_of_pillows_image_is_kept() -> None:
    """A photo that was opened and not turned is turned by the server, as its file is."""
    colours = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    image.getexif()[ExifTags.Base.Orientation] = 6
    assert np.array_equal(decoded(content(image)), np.rot90(colours, -1))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((2, 4, 4, 3), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
    ],
)
def test_other_arrays_are_refused(array: NDArray[Any]) -> None:
    """The TypeError has the array's type and shape, and what to pass."""
    with pytest.raises(TypeError, match=r"pass uint8 \('\|u1'\) of shape \(H, W, 3\)") as caught:
        content(array)
    assert str(array.shape) in str(caught.value)


def test_array_without_pillow_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client alone does not need Pillow."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(
        ImportError, match="an array or an image of Pillow needs the package pillow"
    ):
        content(np.zeros((4, 4, 3), dtype=np.uint8))


ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_array_of_float32_is_embeddings() -> None:
    """Rows, also of a view, an iterator, and named rows; as messages they have the same numbers."""
    for given in (ROWS, ROWS[::-1][::-1], [*ROWS], [ROWS[0], embeddings(ROWS)[1]]):
        check_several(given)
        assert [content(row) for row in given] == [Embedding(row.tobytes()) for row in ROWS]
    check_several(iter(ROWS))
    (first, second) = embeddings(ROWS[:, ::-1], space="s")
    assert to_input(second).embedding == input_pb.Embedding(values=[5, 4, 3], space="s")
    assert len(first) == 12


@pytest.mark.parametrize("array", [ROWS.astype(np.float64)[0], ROWS.astype(np.float16)[0]])
def test_embedding_of_another_type_is_refused(array: NDArray[Any]) -> None:
    """Rounding is the caller's decision; the TypeError says how."""
    with pytest.raises(TypeError, match=r"an embedding is float32 .* astype\('float32'\)"):
        content(array)


@pytest.mark.parametrize("array", [ROWS[0], ROWS.astype(np.float64), ROWS[None], ROWS.tolist()])
def test_only_a_matrix_of_float32_is_several_embeddings(array: Any) -> None:
    """A single row, other types and shapes are refused with what to pass."""
    with pytest.raises(TypeError, match=r"pass float32 \('<f4'\) of shape \(N, D\)"):
        embeddings(array)
    if isinstance(array, np.ndarray):
        with pytest.raises(TypeError, match=r"an array, float32 \('<f4'\) of shape \(N, D\)"):
            check_several(array)


def test_requests_have_images_or_inputs() -> None:
    """Encoded images are sent as ever; embeddings beside them are inputs."""
    request = classify_request("m", [b"a", b"b"], 0, 0)
    assert (list(request.images), len(request.inputs)) == ([b"a", b"b"], 0)
    request = classify_request("m", embeddings(ROWS), 0, 0)
    assert [list(each.embedding.values) for each in request.inputs] == ROWS.tolist()


def test_sound_files_are_audio_by_their_suffix(tmp_path: Path) -> None:
    """A path and an open file; bytes need ``Audio`` around them."""
    path = tmp_path / "a.WAV"
    path.write_bytes(b"RIFF")
    assert content(path) == content(str(path)) == Audio(b"RIFF") == Audio.read(path)
    with path.open("rb") as file:
        assert content(file) == Audio(b"RIFF")
    assert content(b"RIFF") == b"RIFF"
    assert content(Audio(b"RIFF")) == Audio(b"RIFF")
    assert len(Audio(b"RIFF")) == 4
    assert to_input(Audio(b"RIFF")) == input_pb.Input(audio=b"RIFF")
    path.rename(tmp_path / "a.jpg")
    assert content(tmp_path / "a.jpg") == b"RIFF"
