"""Sources of encoded images (bytes, path, open file), read into bytes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable
from pathlib import Path
from typing import BinaryIO, TypeAlias

from topwork.printable import file_name

ImageLike: TypeAlias = bytes | str | os.PathLike[str] | BinaryIO
"""An encoded image: its bytes, the path of its file, or that file, opened in binary mode."""

NamedImage: TypeAlias = ImageLike | tuple[str, ImageLike]
"""An image, or a pair of its display name and the image; the default name is the file's path."""


def check_several(images: object) -> None:
    """Raise TypeError if ``images`` is a single image (bytes, a path or a file) or no iterable.

    Iterating over bytes, a string or a file would give numbers, letters or lines.
    """
    single = isinstance(images, bytes | str | os.PathLike) or hasattr(images, "read")
    if single or not isinstance(images, Iterable | AsyncIterable):
        kind = type(images).__name__
        raise TypeError(f"images is {kind}: pass a list of images, also for a single image")


def content(image: ImageLike) -> bytes:
    """Return an image's bytes. Raises OSError, with the name of the file, and TypeError."""
    if isinstance(image, bytes):
        return image
    try:
        if isinstance(image, str | os.PathLike):
            return Path(image).read_bytes()
        data = image.read()
    except OSError as error:
        if error.filename is None:
            error.filename = _name(image)
        raise
    except AttributeError:
        kind = type(image).__name__
        raise TypeError(f"an image is {kind}: pass bytes, a path or a binary file") from None
    if not isinstance(data, bytes):
        raise TypeError(f"the file {_name(image)!r} is not open in binary mode")
    return data


def named(image: NamedImage) -> tuple[str, ImageLike]:
    """Return an image's display name, ``""`` for bytes and unnamed files, and the image."""
    return image if isinstance(image, tuple) else (_name(image), image)


def _name(image: ImageLike) -> str:
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "name", "")
    return file_name(path) if isinstance(path, str | os.PathLike) else ""
