"""Scan of Parquet files: manifests, and Hugging Face data sets with the images in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.photo_sets import ROWS, contents, counts, csv, left_out, write

from topwork.errors import ImageError, InvalidInput
from topwork.limits import DEFAULT_LIMITS
from topwork_trainer.data import scan

NAMES = ("b", "a", "unused")
"""Classes of a ClassLabel; their order is not that of the alphabet."""


def images(
    rows: Sequence[tuple[str, str]] = ROWS, *, named: bool = True, **columns: list[Any]
) -> pa.Table:
    """Return a table of images as Hugging Face stores them, with the path as the content."""
    features = {"label": {"names": list(NAMES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table(
        {
            "image": [{"bytes": b"\0" + path.encode(), "path": path} for path, _ in rows],
            "label": [NAMES.index(label) if named else label for _, label in rows],
            **columns,
        }
    )
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata if named else None)


def stored(path: Path, table: pa.Table) -> Path:
    """Write a Parquet file in several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)
    return path


@pytest.mark.parametrize("named", [True, False])
def test_images_in_a_parquet_file(tmp_path: Path, named: bool) -> None:
    """Labels are names, or numbers with the names in the schema's metadata."""
    photos = scan(stored(tmp_path / "1.parquet", images(named=named)))
    assert counts(photos) == {"a": 6, "b": 6}
    assert contents(photos) == {
        f"1.parquet:{number}": b"\0" + path.encode() for number, (path, _) in enumerate(ROWS)
    }


def test_numbers_without_names_are_labels(tmp_path: Path) -> None:
    """Without a ClassLabel a number is the label's name."""
    table = images().replace_schema_metadata(None)
    assert scan(stored(tmp_path / "1.parquet", table)).labels == ("0", "1")


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"),
        ("train-0", "train-1", "test-0"),
        ("default/train/0000", "default/train/0001", "default/test/0000"),
    ],
)
def test_files_of_a_data_set_are_its_splits(tmp_path: Path, names: Sequence[str]) -> None:
    """Splits are in the names of files or folders, as in repositories of data sets."""
    for number, name in enumerate(names):
        stored(tmp_path / f"{name}.parquet", images())
        assert number < 3
    (tmp_path / "README.md").write_text("---\nlicense: cc\n---")
    photos = scan(tmp_path)
    assert counts(photos) == {"a": 12, "b": 12}
    assert {name: len(split) for name, split in photos.held_out.items()} == {"test": 12}
    assert len(contents(photos)) == 24


def test_groups_and_unlabelled_rows(tmp_path: Path) -> None:
    """A column of groups is used; -1 is no label."""
    table = images(group=[f"p{number % 3}" for number in range(12)])
    labels = pa.array([-1, *table["label"].to_pylist()[1:]])
    photos = scan(stored(tmp_path / "1.parquet", table.set_column(1, "label", labels)))
    assert {photo.group for photo in photos.train} == {"p0", "p1", "p2"}
    assert left_out(photos) == {"unlabelled": ("1.parquet:0",)}


def test_parquet_manifest(tmp_path: Path) -> None:
    """A Parquet file with paths is a manifest; so is metadata.parquet in an imagefolder."""
    write(tmp_path / "photos")
    table = pa.table({"file_name": [row[0] for row in ROWS], "label": [row[1] for row in ROWS]})
    stored(tmp_path / "photos" / "metadata.parquet", table)
    (tmp_path / "photos" / "list.csv").write_text(csv())
    expected = contents(scan(tmp_path / "photos" / "list.csv"))
    assert contents(scan(tmp_path / "photos")) == expected
    assert contents(scan(tmp_path / "photos" / "metadata.parquet")) == expected


def test_large_image_is_an_error_of_that_image(tmp_path: Path) -> None:
    """An image above the limit is not kept."""
    table = images()
    large = {"bytes": bytes(DEFAULT_LIMITS.max_image_bytes + 1), "path": "large.jpg"}
    column = pa.array([large, *table["image"].to_pylist()[1:]])
    photos = scan(stored(tmp_path / "1.parquet", table.set_column(0, "image", column))).train
    with pytest.raises(ImageError, match="has 16777217 bytes; the limit is 16777216"):
        photos[0].read()
    assert photos[1].read() == b"\0a/1.jpg"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"image": [b"x"]}), "no column of labels"),
        (pa.table({"label": ["a"]}), "no column of paths"),
        (pa.table({"image": [{"bytes": None, "path": "x"}], "label": ["a"]}), "no bytes"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, table: pa.Table, message: str) -> None:
    """The error names the file."""
    with pytest.raises(InvalidInput, match=rf"1\.parquet.*{message}"):
        scan(stored(tmp_path / "1.parquet", table))


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    """A truncated file is one sentence."""
    path = stored(tmp_path / "1.parquet", images())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidInput, match=r"1\.parquet cannot be read as Parquet"):
        scan(path)


def test_mixed_splits_are_refused(tmp_path: Path) -> None:
    """A file that is named like no split is not trained on by chance."""
    for name in ("train-0", "test-0", "more-0"):
        stored(tmp_path / f"{name}.parquet", images())
    with pytest.raises(InvalidInput, match=r"more-0\.parquet is named like no split"):
        scan(tmp_path)


def test_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    path = stored(tmp_path / "1.parquet", images())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match=r"needs pyarrow: install topwork\[parquet\]"):
        scan(path)
