"""Fuzz target of embeddings: files of NumPy and stored rows that are read, or refused."""

from __future__ import annotations

import io

import numpy as np

from fuzz import sandbox
from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data.vectors import read_vectors
from topwork.inputs.embeddings import EmbeddingSpec, fingerprint, prepare, to_content, to_row
from topwork.printable import printable

NAMES = ("1.npy", "1.npz")
"""Names of the fuzzed file; the first byte of an input is an index."""

SPEC = EmbeddingSpec(space="points", width=3)


def read(content: bytes) -> None:
    """Read any bytes as a file, and as a stored row."""
    file = sandbox.directory() / NAMES[content[0] % len(NAMES) if content else 0]
    file.write_bytes(content[1:])
    try:
        for vector in read_vectors(file):
            assert vector.row.dtype == np.float32
            assert isinstance(vector.label, str)
            _use(vector.row)
    except InvalidInput as error:
        _check(str(error))
    finally:
        file.unlink()
    try:
        row = prepare(content[1:], SPEC)
    except ImageError:
        return
    assert prepare(to_content(row), SPEC).tobytes() == row.tobytes()


def _use(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    try:
        assert len(fingerprint(to_row(row, SPEC))) == 32
    except ImageError as error:
        _check(str(error))


def _check(message: str) -> None:
    """Check that an error can be shown in a terminal."""
    assert message == printable(message), ascii(message)
    assert len(message) < 1000, message


def seeds() -> list[bytes]:
    """Return a small file of each kind, and a row."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    plain, named, wide = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, rows)
    np.savez(named, embeddings=rows, labels=np.array(["a", "b"]), space="points")
    np.savez_compressed(wide, embeddings=rows.astype(np.float64))
    files = [b"\0" + plain.getvalue(), b"\1" + named.getvalue(), b"\1" + wide.getvalue()]
    return [
        *files,
        b"\0" + rows[0].tobytes(),
        b"\0" + np.array([np.nan, 1, 2], dtype=np.float32).tobytes(),
    ]
