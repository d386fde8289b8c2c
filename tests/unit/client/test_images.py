"""Images given as bytes, path or open file, and the display names that they have."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from topwork.client import async_calls, blocking_calls
from topwork.client.images import ImageSource, NamedImage, content, named

UNREADABLE = "/proc/self/mem"
"""A file that opens and cannot be read, even by root."""


def test_content_of_path_text_file_and_bytes_is_the_same(tmp_path: Path) -> None:
    """However an image is given, its bytes are read."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"photo")
    with path.open("rb") as file:
        given: list[ImageSource] = [b"photo", path, str(path), file, io.BytesIO(b"photo")]
        assert [content(image) for image in given] == [b"photo"] * 5


def test_name_is_given_or_the_path(tmp_path: Path) -> None:
    """A pair has its own name, a file its path, escaped as everywhere; bytes have none."""
    path = tmp_path / "a\nb.png"
    path.touch()
    shown = f"{tmp_path}/a\\u000ab.png"
    with path.open("rb") as file:
        images: list[NamedImage] = [("mine", path), path, str(path), file, b"photo", io.BytesIO()]
        names = [named(image)[0] for image in images]
    assert names == ["mine", shown, shown, shown, "", ""]


@pytest.mark.parametrize("path", ["missing.png", ".", UNREADABLE])
def test_error_of_reading_names_the_file(path: str) -> None:
    """A path that is missing, a folder or unreadable is an OSError with its name."""
    with pytest.raises(OSError, match=rf": '{path}'$"):
        content(path)


def test_error_of_an_open_file_names_it() -> None:
    """As that of a path does."""
    with open(UNREADABLE, "rb") as file, pytest.raises(OSError, match=UNREADABLE):  # noqa: PTH123  # as callers do
        content(file)


def test_text_file_is_refused(tmp_path: Path) -> None:
    """A file that was opened without ``b`` is told by name."""
    path = tmp_path / "photo.png"
    path.write_text("photo")
    with path.open() as file, pytest.raises(TypeError, match=r"photo\.png' is not open in binary"):
        content(file)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("image", [7, None, [b"photo"]])
def test_other_types_are_refused(image: Any) -> None:
    """What is no image is told by its type."""
    with pytest.raises(TypeError, match=f"an image is {type(image).__name__}"):
        content(image)


@pytest.mark.parametrize("images", [b"photo", "photo.png", Path("photo.png"), io.BytesIO(), None])
def test_single_image_for_several_is_refused(images: Any) -> None:
    """Neither client iterates over the letters of a path or the lines of a file."""
    for call in (blocking_calls.contents, lambda one: asyncio.run(async_calls.contents(one))):
        with pytest.raises(TypeError, match=f"images is {type(images).__name__}: give a list"):
            call(images)


def test_contents_take_any_source(tmp_path: Path) -> None:
    """Both clients read generators, the one for asyncio asynchronous ones too."""
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
