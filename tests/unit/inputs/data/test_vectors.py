"""Embeddings in files of NumPy: forms, labels, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from topwork.errors import InvalidInput
from topwork.inputs.data.vectors import (
    is_vectors,
    read_labelled,
    read_vectors,
    space_of_all,
)

ROWS = np.arange(8, dtype=np.float32).reshape(4, 2)


def test_rows_of_both_forms_are_read(tmp_path: Path) -> None:
    """A matrix, a single row, and an archive with labels and space; names have the row."""
    np.save(tmp_path / "a.npy", ROWS)
    np.save(tmp_path / "one.npy", ROWS[1])
    np.savez(tmp_path / "b.npz", embeddings=ROWS, labels=np.array([3, 3, 1, 3]), space="s")
    assert [vector.row.tolist() for vector in read_vectors(tmp_path / "a.npy")] == ROWS.tolist()
    (one,) = read_vectors(tmp_path / "one.npy", label="x")
    assert (one.row.tolist(), one.label, one.space) == ([2, 3], "x", "")
    found = read_vectors(tmp_path / "b.npz")
    assert [(vector.label, vector.space) for vector in found] == [(x, "s") for x in "3313"]
    assert found[2].name == f"{tmp_path}/b.npz[2]"


def test_classes_of_an_archive_and_of_folders(tmp_path: Path) -> None:
    """Both are sorted by label, and recognised."""
    for label in "ba":
        (tmp_path / "folders" / label).mkdir(parents=True)
        np.save(tmp_path / "folders" / label / "1.npy", ROWS)
        np.save(tmp_path / "folders" / label / "2.npy", ROWS[0])
    np.savez(tmp_path / "all.npz", embeddings=ROWS, labels=["b", "a", "b", "b"])
    assert {x: len(rows) for x, rows in read_labelled(tmp_path / "folders").items()} == {
        "a": 5,
        "b": 5,
    }
    assert [*read_labelled(tmp_path / "all.npz")] == ["a", "b"]
    assert is_vectors(tmp_path / "folders")
    assert is_vectors(tmp_path / "all.npz")
    assert not is_vectors(tmp_path)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
def test_a_parquet_file_has_embeddings_and_labels(tmp_path: Path, kind: pa.DataType) -> None:
    """A column of lists of one length, and one of labels, of any name that manifests may have."""
    path = tmp_path / "a.parquet"
    labels = ["b", "a", "b", None]
    columns = {"embedding": pa.array(ROWS.tolist(), kind), "Class": labels, "more": [1] * 4}
    parquet.write_table(pa.table(columns), path)
    assert is_vectors(path)
    found = read_vectors(path)
    assert [vector.row.tolist() for vector in found] == ROWS.tolist()
    assert [vector.label for vector in found] == ["b", "a", "b", ""]
    with pytest.raises(InvalidInput, match=r"a.parquet\[3\] has no label"):
        read_labelled(path)
    assert [vector.label for vector in read_vectors(path, label="x")] == ["x"] * 4


@pytest.mark.parametrize(
    ("rows", "kind", "fault"),
    [
        ([[1.0, 2.0], [1.0]], pa.float32(), "several widths, or none: 1, 2"),
        ([[1.0, 2.0], None], pa.float32(), "several widths, or none: 2, none"),
        ([], pa.float32(), "several widths, or none"),
        ([[1.0, 2.0]], pa.float64(), "numbers of type float64"),
        ([[1.0, None]], pa.float32(), ""),
    ],
)
def test_unusable_columns_of_parquet_files(
    tmp_path: Path, rows: list[Any], kind: pa.DataType, fault: str
) -> None:
    """Each is an error with the file's name; a missing number is NaN, which is refused later."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"embedding": pa.array(rows, pa.list_(kind))}), path)
    assert is_vectors(path)
    if not fault:
        assert np.isnan(read_vectors(path)[0].row[1])
        return
    with pytest.raises(InvalidInput, match=fault) as caught:
        read_vectors(path)
    assert "a.parquet" in str(caught.value)


def test_other_parquet_files_have_no_embeddings(tmp_path: Path) -> None:
    """They are manifests, photos or texts; a damaged file is an error."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"embedding": ["text"], "label": ["a"]}), path)
    assert not is_vectors(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(InvalidInput, match=r"a.parquet"):
        is_vectors(path)


def saved(**arrays: Any) -> bytes:
    """Return the content of an archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def plain(array: Any) -> bytes:
    """Return the content of a file with one array."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def bomb() -> bytes:
    """Return an archive whose array claims more rows than any memory has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        header = plain(ROWS).replace(b"(4, 2), }         ", b"(4000000000, 200)}")
        archive.writestr("embeddings.npy", header)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"", "no file of NumPy that can be read"),
        ("x.npy", b"\x93NUMPY", "no file of NumPy that can be read"),
        ("x.npz", b"PK\3\4", "no file of NumPy that can be read"),
        ("x.npy", plain(np.array([{}], dtype=object)), "no file of NumPy .*Python objects"),
        ("x.npy", plain(ROWS.astype(np.float64)), r"type float64; .*astype\('float32'\)"),
        ("x.npy", plain(ROWS[:0]), r"has the shape \(0, 2\)"),
        ("x.npy", plain(ROWS[None]), r"has the shape \(1, 4, 2\)"),
        ("x.npz", saved(rows=ROWS), "has no array embeddings"),
        ("x.npz", saved(embeddings=ROWS, labels=["a"]), r"shape \(1,\); .* of shape \(4,\)"),
        ("x.npz", saved(embeddings=ROWS, labels=np.ones(4)), "labels of type float64"),
        ("x.npz", bomb(), "no file of NumPy that can be read"),
    ],
)
def test_bad_file_is_invalid_input(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """The sentence names the file and what is wrong."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        read_vectors(tmp_path / name)
    assert name in str(caught.value)


def test_rows_without_a_label_or_of_two_widths_are_refused(tmp_path: Path) -> None:
    """A class of every row, and one width and space for all."""
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(InvalidInput, match=r"a.npy\[0\] has no label"):
        read_labelled(tmp_path / "a.npy")
    np.save(tmp_path / "wide.npy", ROWS.reshape(2, 4))
    rows = [*read_vectors(tmp_path / "a.npy"), *read_vectors(tmp_path / "wide.npy")]
    with pytest.raises(InvalidInput, match=r"wide.npy\[0\] has 4 numbers .* 2 of"):
        space_of_all(rows)
