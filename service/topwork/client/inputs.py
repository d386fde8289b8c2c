"""Inputs other than images: texts, audio, and embeddings that the caller has computed.

Needs no NumPy itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

from topwork.audio_files import is_audio
from topwork.v1 import input_pb2 as input_pb

FLOAT32 = "<f4"
"""NumPy's name of little-endian float32."""


class Array(Protocol):
    """NumPy array."""

    @property
    def dtype(self) -> Any:
        """Type of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""

    @property
    def __array_interface__(self) -> Mapping[str, Any]:
        """See NumPy's array interface."""

    def __iter__(self) -> Iterator[Array]:
        """Iterate over the rows."""

    def tobytes(self) -> bytes:
        """Return the elements in C order."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A vector that the caller has computed, for a model of such inputs; see ``embeddings``."""

    values: bytes
    """float32, little-endian."""
    space: str = ""
    """Name of the space that it is of; empty: not compared with that of the model."""

    def __len__(self) -> int:
        """Return the size in bytes."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Text:
    """A text, for a model of such inputs. A plain string is the path of a file."""

    text: str

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Text:
        """Return the text in a file, in UTF-8. Raises OSError and UnicodeDecodeError."""
        return cls(Path(path).read_text(encoding="utf-8"))

    @property
    def data(self) -> bytes:
        """The text in UTF-8. Raises UnicodeEncodeError for a lone surrogate."""
        return self.text.encode()

    def __len__(self) -> int:
        """Return the size in bytes."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Audio:
    """A recording, for a model of such inputs: the bytes of a WAV, FLAC, OGG or MP3 file.

    The path of such a file is sent as one, too, by its suffix.
    """

    data: bytes

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Audio:
        """Return the recording in a file. Raises OSError."""
        return cls(Path(path).read_bytes())

    def __len__(self) -> int:
        """Return the size in bytes."""
        return len(self.data)


Content: TypeAlias = bytes | Embedding | Text | Audio
"""Content of an input; bytes are an encoded image."""


def embeddings(rows: Array, *, space: str = "") -> list[Embedding]:
    """Return the rows of a NumPy array, float32 (N, D), as inputs of the space ``space``.

    The client's methods take such an array, too, and then the server cannot compare the space.
    Raises TypeError for another type or shape.
    """
    if not is_matrix(rows):
        raise TypeError(f"{_described(rows)}: pass float32 ({FLOAT32!r}) of shape (N, D)")
    return [Embedding(row.tobytes(), space) for row in rows]


def is_matrix(value: object) -> TypeGuard[Array]:
    """Return True for an array whose rows are embeddings."""
    return _is_array(value) and value.dtype.str == FLOAT32 and len(value.shape) == 2


def is_vector(value: object) -> TypeGuard[Array]:
    """Return True for an array that is one embedding, or would be as float32."""
    return _is_array(value) and value.dtype.kind == "f" and len(value.shape) == 1


def from_vector(vector: Array) -> Embedding:
    """Return an array (D,) as an input. Raises TypeError unless it is float32."""
    if vector.dtype.str != FLOAT32:
        raise TypeError(
            f"{_described(vector)}: an embedding is float32 ({FLOAT32!r}), which astype('float32') "
            "makes of it"
        )
    return Embedding(vector.tobytes())


def of_file(path: str | os.PathLike[str], data: bytes) -> Content:
    """Return the content of a file: audio by its suffix, otherwise an encoded image."""
    return Audio(data) if is_audio(path) else data


def to_input(content: Content) -> input_pb.Input:
    """Return the message of an input."""
    if isinstance(content, Text):
        return input_pb.Input(text=content.text)
    if isinstance(content, Audio):
        return input_pb.Input(audio=content.data)
    if isinstance(content, bytes):
        return input_pb.Input(image=content)
    values = memoryview(content.values).cast("f").tolist()
    return input_pb.Input(embedding=input_pb.Embedding(values=values, space=content.space))


def _is_array(value: object) -> TypeGuard[Array]:
    # An image of Pillow has an array interface, too, which would encode it.
    return hasattr(type(value), "__array_interface__") and hasattr(value, "dtype")


def _described(value: object) -> str:
    if not _is_array(value):
        return f"the embeddings are {type(value).__name__}"
    return f"an array is {value.dtype.str} {value.shape}"
