"""Folders of photos, as people have them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from topwork.errors import InvalidInput
from topwork_trainer.data import scan


def _folders(root: Path, counts: dict[str, int]) -> Path:
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for index in range(count):
            (root / label / f"{index}.jpg").write_bytes(b"x")
    return root


def test_files_are_labelled_by_their_folder(tmp_path: Path) -> None:
    """Every file below a class's folder bears its label, hidden ones do not count."""
    _folders(tmp_path, {"b": 5, "a": 5})
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "deep" / "6.jpg").write_bytes(b"x")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.txt").write_text("not a class")
    sources = scan(tmp_path)
    assert [source.label for source in sources] == ["a"] * 6 + ["b"] * 5
    assert "a/deep/6.jpg" in {source.name for source in sources}
    assert sources[0].read() == b"x"


def test_classes_chooses_folders(tmp_path: Path) -> None:
    """Only the folders that are named are used, each once."""
    _folders(tmp_path, {"a": 5, "b": 5, "c": 5})
    assert {source.label for source in scan(tmp_path, classes=["c", "a", "c"])} == {"a", "c"}


def test_decomposed_folder_names_are_composed(tmp_path: Path) -> None:
    """A folder whose name macOS stored decomposed (NFD) gets the composed label (NFC)."""
    _folders(tmp_path, {unicodedata.normalize("NFD", "rosé"): 5, "tulip": 5})
    assert {source.label for source in scan(tmp_path)} == {"rosé", "tulip"}


@pytest.mark.parametrize(
    ("counts", "classes", "message"),
    [
        ({}, None, "0 classes"),
        ({"a": 5}, None, "1 classes"),
        ({"a": 5, "b": 5}, ["a", "nope"], "'nope' is no folder"),
        ({"a": 5, "b": 4}, None, "at least 5 files a class are needed: 'b' has 4"),
        ({"a": 5, "b": 0}, None, "'b' has 0"),
        ({"a": 5, "x" * 101: 5}, None, "101 characters; the limit is 100"),
        ({"a": 5, "b\tc": 5}, None, "control character"),
    ],
)
def test_unusable_folders_are_refused(
    tmp_path: Path, counts: dict[str, int], classes: list[str] | None, message: str
) -> None:
    """What cannot be learnt from is refused with the value and the limit."""
    with pytest.raises(InvalidInput, match=message):
        scan(_folders(tmp_path, counts), classes=classes)


def test_data_must_be_a_folder(tmp_path: Path) -> None:
    """A missing folder is named."""
    with pytest.raises(InvalidInput, match="nowhere is not a folder"):
        scan(tmp_path / "nowhere")
