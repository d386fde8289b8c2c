"""Scan of manifests: tables that name photos, labels, splits and groups."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from support.photo_sets import ROWS, contents, counts, csv, left_out, write

from topwork.errors import InvalidInput
from topwork_trainer.data import Photos, add_test_set, scan


def scanned(folder: Path, text: str, name: str = "photos.csv") -> Photos:
    """Return the scan of a manifest in a folder."""
    (folder / name).write_text(text, encoding="utf-8")
    return scan(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with six files of each of two classes."""
    return write(tmp_path)


def test_csv_manifest_equals_class_folders(folder: Path) -> None:
    """Names, labels and contents are those of a scan of the folders."""
    photos, folders = scanned(folder, csv()), scan(folder)
    assert contents(photos) == contents(folders)
    assert counts(photos) == counts(folders) == {"a": 6, "b": 6}
    assert photos.train[0].path == folder / "a/0.jpg"
    assert (photos.left_out, photos.notes, photos.held_out) == ((), (), {})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["photos.csv", "photos.TSV"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiter_and_byte_order_mark_are_recognised(
    folder: Path, delimiter: str, name: str, mark: str
) -> None:
    """Commas, semicolons and tabs separate fields; a byte order mark is no part of a column."""
    text = mark + csv().replace(",", delimiter).replace("\n", "\r\n")
    assert counts(scanned(folder, text, name)) == {"a": 6, "b": 6}


@pytest.mark.parametrize(
    "header", ["file_name,label", "Image,Class", " filepath , category ", "FILE,Label"]
)
def test_columns_have_several_names(folder: Path, header: str) -> None:
    """Columns of paths and labels may be named as other tools name them."""
    assert counts(scanned(folder, csv(header=header))) == {"a": 6, "b": 6}


def test_quoted_fields_may_contain_the_delimiter(folder: Path) -> None:
    """A quoted path contains a comma and a quotation mark."""
    write(folder, [('c/x, "y".jpg', "c")])
    text = csv() + '"c/x, ""y"".jpg",a\n'
    assert 'c/x, "y".jpg' in contents(scanned(folder, text))


def test_json_lines_manifest(folder: Path) -> None:
    """Each line is an object; numbers are labels, too."""
    rows = [{"path": path, "label": 1 if label == "a" else "b"} for path, label in ROWS]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    assert counts(scanned(folder, text, "photos.jsonl")) == {"1": 6, "b": 6}


def test_labels_are_composed_and_stripped(folder: Path) -> None:
    """Labels that differ in Unicode form or in spaces around them are one class."""
    forms = ["caf\u00e9", "cafe\u0301", " caf\u00e9 "]
    rows = [
        (path, forms[number % 3] if label == "a" else label)
        for number, (path, label) in enumerate(ROWS)
    ]
    assert counts(scanned(folder, csv(rows))) == {
        unicodedata.normalize("NFC", "cafe\u0301"): 6,
        "b": 6,
    }


def test_paths_may_be_absolute_or_above_the_manifest(folder: Path) -> None:
    """The manifest is the user's own, so it may name any file."""
    (folder / "lists").mkdir()
    rows = [(f"../{path}" if label == "a" else str(folder / path), label) for path, label in ROWS]
    photos = scanned(folder / "lists", csv(rows))
    assert counts(photos) == {"a": 6, "b": 6}
    assert photos.train[0].name == "../a/0.jpg"


def test_splits_are_held_out(folder: Path) -> None:
    """Rows of other splits than train are held out, by the name of the split."""
    write(folder, [("1.jpg", ""), ("2.jpg", "")])
    rows = [*((*row, "Train") for row in ROWS), ("1.jpg", "a", "valid"), ("2.jpg", "b", "test")]
    photos = scanned(folder, csv(rows, "path,label,split"))
    assert counts(photos) == {"a": 6, "b": 6}
    assert {name: [photo.name for photo in split] for name, split in photos.held_out.items()} == {
        "test": ["2.jpg"],
        "valid": ["1.jpg"],
    }
    assert photos.notes == ("Held out and not trained on: test (1 photos), valid (1 photos)",)


def test_held_out_photos_of_untrained_labels_are_left_out(folder: Path) -> None:
    """A label that only the test split has is listed, photo by photo."""
    write(folder, [("1.jpg", "")])
    rows = [*((*row, "train") for row in ROWS), ("1.jpg", "new", "test")]
    assert left_out(scanned(folder, csv(rows, "path,label,split"))) == {"untrained": ("1.jpg",)}


def test_missing_files_and_labels_are_left_out(folder: Path) -> None:
    """Rows without a file or without a label are listed by reason."""
    rows = [*ROWS, ("a/9.jpg", "a"), ("a\0.jpg", "b"), ("1.jpg", "")]
    assert left_out(scanned(folder, csv(rows))) == {
        "missing": ("a/9.jpg", "a\\u0000.jpg"),
        "unlabelled": ("1.jpg",),
    }


def test_unused_columns_and_repeated_rows_are_noted(folder: Path) -> None:
    """Columns without a meaning are named; a row that repeats another is used once."""
    rows = [(*row, "40") for row in [*ROWS, *ROWS[:2], ("./a/0.jpg", "a")]]
    photos = scanned(folder, csv(rows, "path,label,age"))
    assert counts(photos) == {"a": 6, "b": 6}
    assert photos.notes == (
        "Columns of photos.csv that are not used: age",
        "3 rows of photos.csv repeat others and are used once",
    )


def test_classes_selects_labels(folder: Path) -> None:
    """Only the named labels are used, in any Unicode form; a missing one is an error."""
    write(folder, rows := [(f"c/{number}.jpg", "caf\u00e9") for number in range(5)])
    (folder / "photos.csv").write_text(csv([*ROWS, *rows]), encoding="utf-8")
    assert scan(folder / "photos.csv", classes=["a", "cafe\u0301"]).labels == ("a", "caf\u00e9")
    with pytest.raises(
        InvalidInput, match="no photo of class 'x'; its classes are a, b, caf\u00e9"
    ):
        scan(folder / "photos.csv", classes=["a", "x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"photos\.csv is empty"),
        ("a/0.jpg,a\n", "no column of paths: name one of its columns path or file_name"),
        ("path\na/0.jpg\n", "no column of labels.*; they are: path"),
        ("path,path,label\n", "two columns 'path'"),
        ("path,label\na/0.jpg,a,b\n", "line 2: 3 fields; the header has 2"),
        ('path,label\n"a/0.jpg,a\n', "line 2: unexpected end of data"),
        ("path,label\n,a\n", "line 2: the column 'path' is empty"),
        (csv([*ROWS, ("./a/0.jpg", "b")]), r"a/0.jpg has two labels: 'a' \(.*line 2\) and 'b'"),
        (csv([("http://x/1.jpg", "a")]), "http://x/1.jpg is a URL: .* download them"),
        (csv([("s3://x/1.jpg", "a")]), "s3://x/1.jpg is a URL"),
        (csv([(*ROWS[0], "late")], "path,label,split"), "'late' is none of train, val and test"),
        (csv([(*ROWS[0], "")], "path,label,split"), "'' is none of train, val and test"),
        (
            csv([(*ROWS[0], "train"), (*ROWS[0], "test")], "path,label,split"),
            "a/0.jpg has two splits: 'train' .* and 'test'",
        ),
        (
            csv([(*ROWS[0], "1"), (*ROWS[0], "2")], "path,label,group"),
            "a/0.jpg has two groups: '1' .* and '2'",
        ),
        (csv([(*ROWS[0], "val")], "path,label,split"), "no labelled photo to train on.*splits val"),
        (csv([(f"no/{path}", label) for path, label in ROWS]), "'a' has 0.*12 missing files"),
        (csv(ROWS[:6]), r"1 classes \(a\); 2 to 1000 are needed$"),
        (csv([*ROWS, *((path, "\x07") for path, _ in ROWS[:0])]) + "a/7.jpg,\x07\n", "control"),
        (f"path,label\n{'x' * 200_000},a\n", "field larger than field limit"),
    ],
)
def test_unusable_manifests_are_refused(folder: Path, text: str, message: str) -> None:
    """Each problem is one sentence that names the file, and the line where there is one."""
    with pytest.raises(InvalidInput, match=message):
        scanned(folder, text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3", "line 1: a JSON object is needed, not 3"),
        ("{", "line 1: invalid JSON"),
        ("[" * 100_000, "line 1: invalid JSON"),
        ('{"path": "a/0.jpg", "label": ["a"]}', "the column 'label' has a list, not a text"),
    ],
)
def test_unusable_json_lines_are_refused(folder: Path, line: str, message: str) -> None:
    """The error names the line."""
    with pytest.raises(InvalidInput, match=message):
        scanned(folder, line, "photos.jsonl")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_refused(folder: Path, encoding: str) -> None:
    """A manifest that is not UTF-8 is not guessed at."""
    (folder / "photos.csv").write_text("path,label\ncaf\u00e9.jpg,a\n", encoding=encoding)
    with pytest.raises(InvalidInput, match="is not UTF-8 at byte"):
        scan(folder / "photos.csv")


# Groups


def grouped(folder: Path, groups: list[str]) -> Photos:
    """Return the scan of a manifest whose rows have these groups in turn."""
    rows = [(*row, groups[number % len(groups)]) for number, row in enumerate(ROWS)]
    return scanned(folder, csv(rows, "path,label,group"))


def test_groups_are_read(folder: Path) -> None:
    """Each photo has its group, and a note counts them."""
    photos = grouped(folder, ["p1", " p2 ", ""])
    assert [photo.group for photo in photos.train[:3]] == ["p1", "p2", ""]
    assert photos.notes == ("Folds keep groups together (2 groups; 4 photos have no group)",)


def test_one_group_for_a_whole_class_is_refused(folder: Path) -> None:
    """A head could not be evaluated on a class that is never left out in part."""
    with pytest.raises(InvalidInput, match="all photos of class 'a' belong to the group 'p1'"):
        grouped(folder, ["p1"])


# Hugging Face imagefolder


def test_metadata_beside_photos_is_a_manifest(folder: Path) -> None:
    """metadata.csv with file_name and label decides the labels of a folder."""
    rows = [(path, {"a": "b", "b": "a"}[label]) for path, label in ROWS]
    (folder / "metadata.csv").write_text(csv(rows, "file_name,label"))
    photos = scan(folder)
    assert {photo.label for photo in photos.train if photo.name.startswith("a/")} == {"b"}


def test_metadata_without_labels_leaves_class_folders(folder: Path) -> None:
    """metadata.csv that only describes the photos is left out as a text."""
    (folder / "metadata.csv").write_text(csv(header="file_name,caption"))
    assert left_out(scan(folder)) == {"text": ("metadata.csv",)}


def test_metadata_in_splits(folder: Path) -> None:
    """Each split has its metadata; paths are relative to it."""
    for split in ("train", "test"):
        write(folder / "set" / split)
        lines = (json.dumps({"file_name": path, "label": label}) for path, label in ROWS)
        (folder / "set" / split / "metadata.jsonl").write_text("\n".join(lines))
    photos = scan(folder / "set")
    assert counts(photos) == {"a": 6, "b": 6}
    assert photos.train[0].name == "train/a/0.jpg"
    assert [photo.name for photo in photos.held_out["test"]][:1] == ["test/a/0.jpg"]


# Test sets


def test_test_set_has_photos_of_trained_labels(folder: Path) -> None:
    """A test set may have few photos and other labels, which are left out."""
    (folder / "more.csv").write_text(csv([*ROWS[:1], ("b/1.jpg", "new")]))
    photos = add_test_set(scan(folder), folder / "more.csv")
    assert {name: len(split) for name, split in photos.held_out.items()} == {"more.csv": 1}
    assert left_out(photos) == {"text": ("more.csv",), "untrained": ("more.csv/b/1.jpg",)}
    assert photos.notes == ("Held out and not trained on: more.csv (1 photos)",)
    (folder / "more.csv").write_text(csv([("b/1.jpg", "new")]))
    with pytest.raises(InvalidInput, match="no photo of a trained class; its classes are new"):
        add_test_set(scan(folder), folder / "more.csv")


def test_test_set_with_splits_uses_its_test_split(folder: Path) -> None:
    """Of data with splits the test split is evaluated; without one it is refused."""
    rows = [(*row, "train" if number else "test") for number, row in enumerate(ROWS)]
    photos = scanned(folder, csv([*rows, ("a/../a/0.jpg", "a", "test")], "path,label,split"))
    other = folder / "sets" / "test"
    write(other / "train")
    write(other / "test", ROWS[:1])
    photos = add_test_set(photos, other)
    assert list(photos.held_out) == ["test", str(other)]
    assert [photo.name for photo in photos.held_out[str(other)]] == ["test/a/0.jpg"]
    assert "Of test the split test is used" in photos.notes
    (other / "test").rename(other / "val")
    with pytest.raises(InvalidInput, match="has the splits train, val and no test split"):
        add_test_set(photos, other)


def test_backslashes_separate_folders(folder: Path) -> None:
    """A manifest that Windows wrote names the same photos as one with slashes."""
    photos = scanned(folder, csv().replace("/", "\\"))
    assert contents(photos) == contents(scan(folder))


def test_file_with_a_backslash_in_its_name_is_found(folder: Path) -> None:
    """A literal name comes before the folder that it could mean."""
    write(folder, [("a\\0.jpg", "b")])
    found = contents(scanned(folder, csv() + "a\\0.jpg,b\n"))
    assert found["a/0.jpg"] == b"\0a/0.jpg"
    assert b"\0a\\0.jpg" in found.values()


def test_messages_are_short(folder: Path) -> None:
    """A message shows at most the beginning of long values."""
    for text in (f"{'x' * 9_000},label\n", f"path,label\nhttp://{'x' * 9_000},a\n"):
        with pytest.raises(InvalidInput, match="xxx") as error:
            scanned(folder, text)
        assert len(str(error.value)) < 400
