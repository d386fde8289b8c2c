"""Sources of inputs (bytes, path, open file, array, Pillow's image), as bytes or embeddings."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeGuard

from topwork.client.inputs import (
    Audio,
    Content,
    Embedding,
    Text,
    from_vector,
    is_matrix,
    is_vector,
    of_file,
)
from topwork.printable import file_name

_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "P", "RGB", "RGBA"}
"""Pillow's modes that a PNG can hold."""


class Picture(Protocol):
    """Decoded image: an array of NumPy, uint8 (H, W, 3), RGB, or (H, W), or an image of Pillow."""

    @property
    def __array_interface__(self) -> Mapping[str, Any]:
        """See NumPy's array interface."""


ImageLike: TypeAlias = (
    bytes | str | os.PathLike[str] | BinaryIO | Picture | Embedding | Text | Audio
)
"""An image: its encoded bytes, the path of its file, that file, opened in binary mode, or decoded.

A decoded image is sent without loss, as PNG. A file is audio by its suffix, such as `.wav`.
An array (D,) is an embedding, see ``inputs``.
"""

NamedImage: TypeAlias = ImageLike | tuple[str, ImageLike]
"""An image, or a pair of its display name and the image; the default name is the file's path."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image with a label of its own, of AddClasses or an evaluation."""

    image: NamedImage
    label: str = ""
    """The label that is right; empty: an image of none of the classes."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Values by column, such as ``camera``, for the accuracy of subgroups."""


def own_fields(
    image: NamedImage | LabelledImage,
) -> tuple[NamedImage, dict[str, Any]]:
    """Return an image, and the fields of its message beside content and name."""
    if not isinstance(image, LabelledImage):
        return image, {}
    columns = {"columns": dict(image.columns)} if image.columns else {}
    return image.image, {"label": image.label, **columns}


def check_several(images: object) -> None:
    """Raise TypeError if ``images`` is a single image or no iterable.

    An array is a single image, unless it is float32 of shape (N, D): embeddings. Iterating over
    bytes, a string, a file or another array would give numbers, letters, lines or rows.
    """
    single = (
        isinstance(images, bytes | str | os.PathLike)
        or hasattr(images, "read")
        or (_is_picture(images) and not is_matrix(images))
    )
    if single or not isinstance(images, Iterable | AsyncIterable):
        kind = type(images).__name__
        raise TypeError(
            f"images is {kind}: pass a list of images, also for a single image, or embeddings as "
            "an array, float32 ('<f4') of shape (N, D)"
        )


def content(image: ImageLike) -> Content:
    """Return an image's bytes, a text, audio or an embedding.

    Raises OSError, with the name of the file, TypeError for another type or array, and ImportError
    if Pillow is not installed, which encodes arrays.
    """
    if isinstance(image, bytes | Embedding | Text | Audio):
        return image
    if is_vector(image):
        return from_vector(image)
    if _is_picture(image):
        return _png(image)
    try:
        if isinstance(image, str | os.PathLike):
            return of_file(image, Path(image).read_bytes())
        data = image.read()  # type: ignore[union-attr] # no Picture: those are encoded above
    except OSError as error:
        if error.filename is None:
            error.filename = _name(image)
        raise
    except AttributeError:
        kind = type(image).__name__
        raise TypeError(
            f"an image is {kind}: pass bytes, a path, a binary file, or an array"
        ) from None
    if not isinstance(data, bytes):
        raise TypeError(f"the file {_name(image)!r} is not open in binary mode")
    return of_file(_name(image), data)


def named(image: NamedImage) -> tuple[str, ImageLike]:
    """Return an image's display name, ``""`` for bytes and unnamed files, and the image."""
    return image if isinstance(image, tuple) else (_name(image), image)


def labelled(classes: Mapping[str, Iterable[NamedImage]]) -> Iterator[LabelledImage]:
    """Yield the images of each label. Raises TypeError if a label has one image, not several."""
    for images in classes.values():
        check_several(images)
    return (LabelledImage(image, label) for label, images in classes.items() for image in images)


def _name(image: ImageLike) -> str:
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "name", "")
    return file_name(path) if isinstance(path, str | os.PathLike) else ""


def _is_picture(image: object) -> TypeGuard[Picture]:
    return hasattr(type(image), "__array_interface__")


def _png(picture: Picture) -> bytes:
    """Return a decoded image as PNG, with the orientation of Pillow's image."""
    try:
        pillow = import_module("PIL.Image")  # the client does not depend on it
    except ImportError as error:
        text = "an array or an image of Pillow needs the package pillow, to be sent as PNG"
        raise ImportError(text) from error
    if isinstance(picture, pillow.Image):
        image = picture if picture.mode in _MODES else picture.convert("RGB")
    else:
        kind, shape = picture.__array_interface__["typestr"], picture.__array_interface__["shape"]
        if kind != "|u1" or shape[2:] not in {(), (3,)} or len(shape) < 2 or 0 in shape:
            raise TypeError(
                f"an array is {kind} {shape}: pass uint8 ('|u1') of shape (H, W, 3), RGB, or (H, W)"
            )
        image = pillow.fromarray(picture)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", compress_level=1, exif=image.getexif())
    return encoded.getvalue()
