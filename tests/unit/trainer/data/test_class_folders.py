"""Scan of folders of photos."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from topwork.errors import ImageError, InvalidInput
from topwork_trainer.data import Photos, scan

NFC, NFD = "caf\u00e9", "cafe\u0301"


def _folders(root: Path, counts: dict[str, int]) -> Path:
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / label / f"{index}.jpg").write_bytes(b"x")
    return root


def counts(photos: Photos) -> dict[str, int]:
    """Return the number of training photos of each label."""
    return dict(Counter(photo.label for photo in photos.train))


def left_out(photos: Photos) -> dict[str, tuple[str, ...]]:
    """Return the names of files and folders that are left out, by reason."""
    return {group.reason: group.names for group in photos.left_out}


def test_files_are_labelled_by_their_folder(tmp_path: Path) -> None:
    """Every file below a class folder has its label; hidden files do not count."""
    _folders(tmp_path, {"b": 5, "a": 5})
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "deep" / "6.jpg").write_bytes(b"x")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.txt").write_text("not a class")
    photos = scan(tmp_path)
    assert photos.labels == ("a", "b")
    assert [photo.label for photo in photos.train] == ["a"] * 6 + ["b"] * 5
    assert "a/deep/6.jpg" in {photo.name for photo in photos.train}
    assert photos.train[0].read() == b"x"
    assert left_out(photos) == {"hidden": (".git", "a/.DS_Store"), "text": ("README.txt",)}


def test_classes_selects_folders(tmp_path: Path) -> None:
    """Only the named folders are used, each once."""
    _folders(tmp_path, {"a": 5, "b": 5, "c": 5})
    assert scan(tmp_path, classes=["c", "a", "c"]).labels == ("a", "c")


def test_decomposed_folder_names_are_composed(tmp_path: Path) -> None:
    """A folder whose name macOS stored in decomposed form (NFD) has the composed label (NFC)."""
    _folders(tmp_path, {unicodedata.normalize("NFD", "rosé"): 5, "tulip": 5})
    assert scan(tmp_path).labels == ("rosé", "tulip")


def test_two_forms_of_a_label_are_one_class(tmp_path: Path) -> None:
    """Folders whose names differ only in Unicode form are one class, with a note."""
    _folders(tmp_path, {NFC: 5, NFD: 7, "tulip": 5})
    photos = scan(tmp_path)
    assert counts(photos) == {NFC: 12, "tulip": 5}
    assert len({photo.name for photo in photos.train}) == 17
    (note,) = photos.notes
    assert "'caf\\xe9'" in note
    assert "'cafe\\u0301'" in note


@pytest.mark.parametrize("given", [[NFC, "tulip"], [NFD, "tulip"], [NFD, NFC, "tulip"]])
def test_classes_match_folders_in_any_unicode_form(tmp_path: Path, given: list[str]) -> None:
    """A class is found whatever the Unicode form of the option or of the folder name."""
    _folders(tmp_path, {NFD: 5, "tulip": 5, "other": 5})
    assert counts(scan(tmp_path, classes=given)) == {NFC: 5, "tulip": 5}


def test_folders_without_photos_are_no_classes(tmp_path: Path) -> None:
    """Empty folders and folders with only text or system files are left out and listed."""
    _folders(tmp_path, {"a": 5, "b": 5, "empty": 0, "__MACOSX": 3})
    for name in ("texts/labels.csv", "droppings/.DS_Store", "bad\tlabel/README"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("no photo")
    photos = scan(tmp_path)
    assert counts(photos) == {"a": 5, "b": 5}
    assert left_out(photos)["empty"] == ("bad\\u0009label", "droppings", "empty", "texts")
    assert left_out(photos)["system"] == ("__MACOSX",)


def test_empty_class_named_by_classes_is_an_error(tmp_path: Path) -> None:
    """A class that ``classes`` names must have photos."""
    _folders(tmp_path, {"a": 5, "b": 5, "empty": 0})
    with pytest.raises(InvalidInput, match="'empty' has 0"):
        scan(tmp_path, classes=["a", "b", "empty"])


def test_class_with_only_dead_links_is_an_error(tmp_path: Path) -> None:
    """A class whose photos are links to a missing disk is not silently left out."""
    _folders(tmp_path, {"a": 5, "b": 5, "c": 0})
    for index in range(5):
        (tmp_path / "c" / f"{index}.jpg").symlink_to(f"/nonexistent/{index}.jpg")
    with pytest.raises(InvalidInput, match="'c' has 0; left out: 5 dead links"):
        scan(tmp_path)


def test_links_to_photos_are_followed(tmp_path: Path) -> None:
    """Links to classes, folders and photos are followed; a link to a parent folder is not."""
    _folders(tmp_path / "far", {"a": 5, "more": 5})
    _folders(tmp_path / "data", {"b": 5})
    (tmp_path / "data" / "a").symlink_to(tmp_path / "far" / "a")
    (tmp_path / "data" / "b" / "more").symlink_to(tmp_path / "far" / "more")
    (tmp_path / "data" / "all").symlink_to(".")
    photos = scan(tmp_path / "data")
    assert counts(photos) == {"a": 5, "b": 10}
    assert left_out(photos) == {"repeated": ("all",)}


def test_photos_outside_class_folders_are_listed(tmp_path: Path) -> None:
    """Photos beside the class folders belong to no class and are left out."""
    _folders(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "1.jpg").write_bytes(b"x")
    assert left_out(scan(tmp_path)) == {"beside": ("1.jpg",)}


def test_large_file_is_not_read_into_memory(tmp_path: Path) -> None:
    """A file above the limit is an error of that image."""
    _folders(tmp_path, {"a": 5, "b": 5})
    with (tmp_path / "a" / "0.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match="the limit is"):
        scan(tmp_path).train[0].read()


# Splits


@pytest.mark.parametrize(
    ("train", "others"),
    [
        ("train", ["val"]),
        ("Train", ["VALID", "Test"]),
        ("training", ["validation"]),
        ("training_set", ["test_set"]),
        ("seg_train", ["seg_test"]),
    ],
)
def test_splits_are_held_out(tmp_path: Path, train: str, others: list[str]) -> None:
    """Only the training split is trained on; the others are returned by name."""
    for name, count in ((train, 6), *((other, 2) for other in others)):
        _folders(tmp_path / name, {"a": count, "b": count})
    (tmp_path / "README.md").write_text("a data set")
    (tmp_path / train / "a" / ".DS_Store").touch()
    photos = scan(tmp_path)
    assert counts(photos) == {"a": 6, "b": 6}
    assert {name: len(split) for name, split in photos.held_out.items()} == dict.fromkeys(others, 4)
    assert photos.train[0].name == f"{train}/a/0.jpg"
    assert left_out(photos) == {"hidden": (f"{train}/a/.DS_Store",), "text": ("README.md",)}
    assert all(f"{other} (4 photos)" in photos.notes[0] for other in others)


def test_classes_selects_folders_in_every_split(tmp_path: Path) -> None:
    """Held-out photos are of the named classes; folders of other classes are listed."""
    for name in ("train", "val"):
        _folders(tmp_path / name, {NFD: 5, "b": 5, "c": 5})
    _folders(tmp_path / "val", {"new": 5})
    photos = scan(tmp_path, classes=[NFC, "b"])
    assert counts(photos) == {NFC: 5, "b": 5}
    assert {photo.label for photo in photos.held_out["val"]} == {NFC, "b"}
    assert left_out(photos) == {"untrained": ("val/c", "val/new")}


def test_unicode_form_may_differ_between_splits(tmp_path: Path) -> None:
    """A composed name in train and a decomposed name in val are the same class."""
    _folders(tmp_path / "train", {NFC: 5, "b": 5})
    _folders(tmp_path / "val", {NFD: 5, "b": 5})
    assert {photo.label for photo in scan(tmp_path).held_out["val"]} == {NFC, "b"}


UNCLEAR = {
    "flat": {"train": 5, "test": 5},
    "test without labels": {"train/a": 5, "train/b": 5, "test": 5},
    "other classes": {"train/steam": 5, "train/diesel": 5, "test/blood": 5, "test/eye": 5},
    "no train": {"val/a": 5, "val/b": 5, "test/a": 5, "test/b": 5},
    "two of a kind": {"train/a": 5, "training/a": 5, "val/a": 5},
    "more beside": {"train/a": 5, "train/b": 5, "val/a": 5, "extra/a": 5},
}


@pytest.mark.parametrize("shape", UNCLEAR.values(), ids=UNCLEAR)
def test_folders_that_may_be_splits_or_classes_are_refused(
    tmp_path: Path, shape: dict[str, int]
) -> None:
    """The error names the folder to pass; with ``classes`` the folders are classes."""
    _folders(tmp_path, shape)
    with pytest.raises(
        InvalidInput, match=rf"pass {tmp_path}/\w+ to train on that alone"
    ) as caught:
        scan(tmp_path)
    assert caught.value.reason == "SPLITS"
    top = sorted({name.partition("/")[0] for name in shape})
    assert scan(tmp_path, classes=top).labels == tuple(top)


@pytest.mark.parametrize("labels", [["train", "bus"], ["test", "control"], ["trainer", "tests"]])
def test_class_may_have_the_name_of_a_split(tmp_path: Path, labels: list[str]) -> None:
    """A single folder named like a split is a class."""
    _folders(tmp_path, dict.fromkeys(labels, 5))
    assert scan(tmp_path).labels == tuple(sorted(labels))


def test_splits_below_classes_are_refused(tmp_path: Path) -> None:
    """A test set below a class folder must not be trained on."""
    for label in ("a", "b"):
        _folders(tmp_path / label, {"train": 5, "test": 5})
    with pytest.raises(InvalidInput, match="contains test and train"):
        scan(tmp_path)


def test_other_folders_below_classes_are_read(tmp_path: Path) -> None:
    """Folders in class folders are read, even if their names repeat, here years."""
    for label in ("a", "b"):
        _folders(tmp_path / label, {"2023": 5, "2024": 5})
    assert counts(scan(tmp_path)) == {"a": 10, "b": 10}


@pytest.mark.parametrize(
    ("counts", "classes", "message"),
    [
        ({}, None, "0 classes"),
        ({"a": 5}, None, "1 classes"),
        ({"a": 5, "b": 5}, ["a", "nope"], "no folder for class 'nope'"),
        ({"a": 5, "b": 4}, None, "at least 5 files per class are needed: 'b' has 4"),
        ({"a": 5, "b": 0}, None, r"1 classes \(a\)"),
        ({"a": 5, "b": 0}, ["a", "b"], "'b' has 0"),
        ({"photos/a": 5, "photos/b": 5}, None, "photos contains folders: pass it if"),
        ({".": 5}, None, r"0 classes \(none\).*; left out: 5 files outside of class folders"),
        ({"a": 5, "b\udcff": 5}, None, r"'b\\udcff' has .* \(invalid UTF-8\)"),
        ({"a": 5, "x" * 101: 5}, None, "101 characters; the limit is 100"),
        ({"a": 5, "b\tc": 5}, None, "control character"),
    ],
)
def test_unusable_folders_are_refused(
    tmp_path: Path, counts: dict[str, int], classes: list[str] | None, message: str
) -> None:
    """Data that cannot be learnt is refused with the value and the limit."""
    with pytest.raises(InvalidInput, match=message):
        scan(_folders(tmp_path, counts), classes=classes)


def test_data_must_exist(tmp_path: Path) -> None:
    """The error names a path that does not exist."""
    with pytest.raises(InvalidInput, match="nowhere is not a folder or a file"):
        scan(tmp_path / "nowhere")
