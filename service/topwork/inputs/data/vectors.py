"""Embeddings in files: ``.npy``, ``.npz``, folders of them with one folder per class, Parquet."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from topwork.errors import InvalidInput
from topwork.inputs.data.parquet import has_embeddings, read_embeddings
from topwork.printable import file_name, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from topwork.arrays import Float32Array

SUFFIXES = (".npy", ".npz")

MOST_BYTES = 16 * 2**30
"""Raising it reads larger ``.npz`` files into memory: bytes after decompression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """A row of a file."""

    name: str
    """Of the file, and the number of the row."""
    row: Float32Array
    """(D,)"""
    space: str = ""
    """Name of the space, if the file has it."""
    label: str = ""


def is_vectors(path: Path) -> bool:
    """Return True if ``path`` has embeddings: a file of NumPy, or a folder with some per class.

    So has a Parquet file with a column ``embedding``. Raises InvalidInput if such a file is damaged
    or pyarrow is missing.
    """
    if path.is_dir():
        return any(file.suffix in SUFFIXES for file in path.glob("*/*.np[yz]"))
    return path.suffix in SUFFIXES or (_is_table(path) and has_embeddings(path))


def read_vectors(path: Path, *, label: str = "") -> list[Vector]:
    """Return the rows of a file, which all have ``label``, or, if it is empty, that of the file.

    A ``.npy`` has float32 (N, D), or (D,); a ``.npz`` such an array ``embeddings``, optionally
    ``labels`` (N,) and ``space``, a text; a Parquet file a column ``embedding`` of lists, and one
    of labels. Raises InvalidInput.
    """
    name = file_name(path)
    if _is_table(path):
        return _vectors(read_embeddings(path), name, label)
    with path.open("rb") as file:
        return _vectors(_read(file, path.stat().st_size, name), name, label)


def decode_vectors(content: bytes, name: str) -> list[Vector]:
    """Return the rows of a ``.npy`` or ``.npz`` as ``read_vectors``. Raises InvalidInput."""
    return _vectors(_read(io.BytesIO(content), len(content), name), name, "")


def _vectors(arrays: dict[str, NDArray[Any]], name: str, label: str) -> list[Vector]:
    """Return the rows of the arrays of a file. Raises InvalidInput."""
    rows = arrays["embeddings"]
    if rows.ndim == 1:
        rows = rows[None]
    if rows.dtype != "float32":
        raise _invalid(
            f"{name} has numbers of type {rows.dtype}; embeddings are float32, as "
            "array.astype('float32') makes them"
        )
    if rows.ndim != 2 or not rows.size:
        raise _invalid(
            f"{name} has the shape {rows.shape}; embeddings have (N, D), at least (1, 1)"
        )
    labels = [label] * len(rows) if label else _labels(arrays, len(rows), name)
    space = str(arrays["space"]) if "space" in arrays else ""
    return [
        Vector(name=f"{name}[{number}]", row=row, space=space, label=own)
        for number, (row, own) in enumerate(zip(rows, labels, strict=True))
    ]


def read_labelled(data: Path) -> dict[str, list[Vector]]:
    """Return the rows of each class: of a file with labels, or a folder with folders.

    Raises InvalidInput.
    """
    if data.is_dir():
        vectors: Iterator[Vector] = (
            vector
            for file in sorted(data.glob("*/*.np[yz]"))
            for vector in read_vectors(file, label=file.parent.name)
        )
    else:
        vectors = iter(read_vectors(data))
    classes: dict[str, list[Vector]] = {}
    for vector in vectors:
        if not vector.label:
            raise _invalid(
                f"{vector.name} has no label: a .npz needs an array labels, a Parquet file a column"
                " label, or each class a folder"
            )
        classes.setdefault(vector.label, []).append(vector)
    return dict(sorted(classes.items()))


def space_of_all(vectors: Iterable[Vector]) -> tuple[str, int]:
    """Return the space, which may be empty, and the width of vectors.

    Raises InvalidInput unless they have the same.
    """
    first: Vector | None = None
    for vector in vectors:
        first = first or vector
        if (vector.space, len(vector.row)) != (first.space, len(first.row)):
            raise _invalid(
                f"{vector.name} has {len(vector.row)} numbers of the space {vector.space!r}, and "
                f"{first.name} {len(first.row)} of {first.space!r}"
            )
    assert first is not None, "a file has at least one row"
    return first.space, len(first.row)


def _is_table(path: Path) -> bool:
    return path.suffix == ".parquet" and path.is_file()


def _labels(arrays: dict[str, NDArray[Any]], rows: int, name: str) -> Sequence[str]:
    if "labels" not in arrays:
        return [""] * rows
    labels = arrays["labels"]
    if labels.shape != (rows,) or labels.dtype.kind not in "Uiu":
        raise _invalid(
            f"{name} has labels of type {labels.dtype} and shape {labels.shape}; they must be text "
            f"or whole numbers, of shape ({rows},)"
        )
    return [str(label) for label in labels.tolist()]


def _read(file: BinaryIO, size: int, name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file of NumPy. Raises InvalidInput."""
    arrays = {}
    try:
        if file.read(2) != b"PK":
            file.seek(0)
            return {"embeddings": _array(file, size)}
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if key in {"embeddings", "labels", "space"}:
                    with archive.open(member) as part:
                        arrays[key] = _array(part, member.file_size)
    except Exception as error:  # NumPy and zipfile raise many classes on damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        raise _invalid(f"{name} is no file of NumPy that can be read: {text:.200}") from error
    if "embeddings" not in arrays:
        raise _invalid(f"{name} has no array embeddings")
    return arrays


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """Return the array in a file of ``size`` bytes, which is not an array of Python objects."""
    import numpy as np  # not at the top: commands that call a server start without it

    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"its version is {version}")
    header = f"read_array_header_{version[0]}_0"
    shape, fortran, dtype = getattr(np.lib.format, header)(file)
    if dtype.hasobject:
        raise ValueError("it has Python objects")
    length = math.prod(shape) * dtype.itemsize
    if not 0 <= length <= min(size, MOST_BYTES):
        raise ValueError(
            f"its array has {length} bytes; the file has {size}, the limit is {MOST_BYTES}"
        )
    found = np.frombuffer(file.read(length), dtype=dtype)
    return found.reshape(shape, order="F" if fortran else "C")


def _invalid(text: str) -> InvalidInput:
    return InvalidInput(printable(text), field="data", reason="EMBEDDING_INVALID")
