"""Test sets: the photos on which a model is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.photo_sets import ROWS, csv, write

from topwork.errors import InvalidInput
from topwork.inputs.data.test_set import read_test_set


def test_all_photos_of_class_folders_are_used(tmp_path: Path) -> None:
    """An empty folder is named; without splits there is nothing to choose."""
    write(tmp_path)
    (tmp_path / "empty").mkdir()
    found = read_test_set(tmp_path)
    assert found.labels() == ["a", "b"]
    assert len(found.photos_of(["a", "b", "c"])) == 12
    assert (list(found.omitted), list(found.notes)) == ([("empty", "empty")], [])


def test_of_splits_the_test_split_is_used(tmp_path: Path) -> None:
    """The choice is a note."""
    for split, rows in (("train", ROWS), ("test", ROWS[:2] + ROWS[6:7])):
        write(tmp_path / split, rows)
    found = read_test_set(tmp_path)
    names = [photo.name for photo in found.photos_of(found.labels())]
    assert names == ["test/a/0.jpg", "test/a/1.jpg", "test/b/0.jpg"]
    assert found.notes == [f"Of {tmp_path.name} the split test is used"]


def test_manifest_may_have_a_test_split_alone(tmp_path: Path) -> None:
    """No photo to train on is needed."""
    write(tmp_path)
    rows = [(*row, "test") for row in ROWS]
    (tmp_path / "photos.csv").write_text(csv(rows, "path,label,split"))
    assert len(read_test_set(tmp_path / "photos.csv").photos_of(["a"])) == 6


def test_splits_without_a_test_split_are_refused(tmp_path: Path) -> None:
    """A validation split is not taken for a test set."""
    write(tmp_path)
    rows = [(*row, "val") for row in ROWS]
    (tmp_path / "photos.csv").write_text(csv(rows, "path,label,split"))
    with pytest.raises(InvalidInput, match="has the splits val and no test split"):
        read_test_set(tmp_path / "photos.csv")


def test_photos_have_the_other_columns_of_their_manifest(tmp_path: Path) -> None:
    """A value that is a list has no text."""
    write(tmp_path)
    (tmp_path / "photos.jsonl").write_text(
        '{"path": "a/0.jpg", "label": "a", "camera": " x ", "year": 2020}\n'
        '{"path": "a/1.jpg", "label": "a", "camera": ["x"]}\n'
    )
    photos = read_test_set(tmp_path / "photos.jsonl").photos_of(["a"])
    assert [photo.columns for photo in photos] == [
        (("camera", "x"), ("year", "2020")),
        (("camera", ""), ("year", "")),
    ]
