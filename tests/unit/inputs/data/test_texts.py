"""Reading of labelled texts: .txt files, rows of tables, FASTA files, and data of several kinds."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from topwork.errors import InvalidInput
from topwork.inputs.data.layouts import find_kind, read
from topwork.inputs.data.photos import Found, Split


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files by their path below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def contents(split: Split) -> dict[str, list[str]]:
    """Return the texts by label."""
    return {
        label: [photo.read().decode() for photo in photos] for label, photos in split.photos.items()
    }


def texts(data: Path) -> Found:
    """Return what is found without being told the kind, which is text."""
    kind, found = find_kind(data, None)
    assert kind == "text"
    return found


FOLDERS: dict[str, str | bytes] = {
    "food/a.txt": "salt",
    "food/deep/b.TXT": "pan",
    "music/a.txt": "choir",
    "music/cover.jpg": b"\xff\xd8\0",
    "music/.hidden.txt": "no",
    "README.txt": "about",
}


def test_folders_of_txt_are_classes(tmp_path: Path) -> None:
    """A file is a text at any depth; other files are left out with a reason."""
    data = write(tmp_path, {**FOLDERS, "music/cover.jpg": "not even text", "food/notes.md": "x"})
    found = read(data, None, "text")
    assert contents(found.train) == {"food": ["salt", "pan"], "music": ["choir"]}
    assert [photo.name for photo in found.train.photos["food"]] == ["food/a.txt", "food/deep/b.TXT"]
    assert sorted(found.omitted) == [
        ("beside", "README.txt"),
        ("hidden", "music/.hidden.txt"),
        ("kind", "music/cover.jpg"),
        ("text", "food/notes.md"),
    ]


def test_splits_of_texts_are_held_out(tmp_path: Path) -> None:
    """Folders train and test are splits, as for photos, and the kind is found."""
    data = write(tmp_path, {
        "train/food/a.txt": "salt", "train/music/a.txt": "choir",
        "test/food/a.txt": "pan", "test/music/a.txt": "drum",
    })  # fmt: skip
    found = texts(data)
    assert contents(found.train) == {"food": ["salt"], "music": ["choir"]}
    assert contents(found.held_out["test"]) == {"food": ["pan"], "music": ["drum"]}


def test_archive_of_texts(tmp_path: Path) -> None:
    """Members of an archive are read in place."""
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/food/a.txt", "salt")
        archive.writestr("data/music/a.txt", "choir")
    assert contents(texts(tmp_path / "data.zip").train) == {"food": ["salt"], "music": ["choir"]}


def test_captions_beside_photos_are_left_out(tmp_path: Path) -> None:
    """Every class has photos, so texts beside them do not change the kind."""
    data = write(
        tmp_path,
        {"a/1.jpg": b"\xff\xd8\0", "a/1.txt": "caption", "b/1.jpg": b"\xff\xd8\0"},
    )
    kind, found = find_kind(data, None)
    assert (kind, list(found.omitted)) == ("image", [("text", "a/1.txt")])


def test_classes_of_two_kinds_are_refused(tmp_path: Path) -> None:
    """The error names a file of each kind; classes that are not used do not matter."""
    data = write(tmp_path, {"a/1.jpg": b"\xff\xd8\0", "b/1.txt": "text", "c/1.jpg": b"\xff\xd8\0"})
    with pytest.raises(InvalidInput, match=r"photos \(a/1\.jpg\) and texts \(b/1\.txt\)") as raised:
        find_kind(data, None)
    assert raised.value.reason == "INPUT_KIND"
    assert find_kind(data, {"a", "c"})[0] == "image"
    assert contents(read(data, None, "text").train) == {"a": [], "b": ["text"], "c": []}


CSV = 'Text,label,split,group,lang\nsalt,food,train,g1,en\n"a, b",music,test,,en\n,food,train,,\n'
ROWS: list[dict[str, object]] = [
    {"sentence": "salt", "class": "food", "group": "g1"},
    {"sentence": "choir\nand drum", "class": "music"},
    {"sentence": 7, "class": None},
]


def test_rows_of_a_csv_are_texts(tmp_path: Path) -> None:
    """Splits, groups and other columns are as in a manifest; a text is named by its line."""
    found = texts(write(tmp_path, {"t.csv": CSV}) / "t.csv")
    assert contents(found.train) == {"food": ["salt", ""]}
    assert contents(found.held_out["test"]) == {"music": ["a, b"]}
    (first, empty) = found.train.photos["food"]
    assert (first.name, first.group, first.columns) == ("t.csv:2", "g1", (("lang", "en"),))
    assert (empty.name, empty.path) == ("t.csv:4", None)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_rows_of_other_tables_are_texts(tmp_path: Path, ending: str) -> None:
    """JSON lines, a list of objects and Parquet files have the same texts."""
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        rows = [{**row, "sentence": str(row["sentence"])} for row in ROWS]
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("\n".join(map(json.dumps, ROWS)))
    found = texts(path)
    assert contents(found.train) == {"food": ["salt"], "music": ["choir\nand drum"]}
    assert found.train.photos["food"][0].group == "g1"
    assert [reason for reason, _name in found.omitted] == ["unlabelled"]


def test_tables_named_like_splits_are_splits(tmp_path: Path) -> None:
    """A folder with train.csv and test.csv is a data set."""
    data = write(
        tmp_path,
        {"train.csv": "text,label\nsalt,food\n", "test.csv": "text,label\npan,food\n", "x.md": ""},
    )
    found = texts(data)
    assert contents(found.train) == {"food": ["salt"]}
    assert contents(found.held_out["test"]) == {"food": ["pan"]}


def test_manifest_of_txt_files_is_of_texts(tmp_path: Path) -> None:
    """A table may name files of texts, as it names photos."""
    data = write(
        tmp_path, {"a.txt": "salt", "b.txt": "choir", "t.csv": "path,label\na.txt,f\nb.txt,m"}
    )
    assert contents(texts(data / "t.csv").train) == {"f": ["salt"], "m": ["choir"]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            '{"text": ["salt"], "label": "food"}',
            r"line 1: the column 'text' has a list, not a text",
        ),
        ('{"text": "salt", "label": "food", "split": "none"}', "the split 'none' is none of"),
        ('{"text": "salt"}', "no column"),
    ],
)
def test_unusable_rows_are_refused(tmp_path: Path, table: str, message: str) -> None:
    """The error has the file and the line."""
    data = write(tmp_path, {"t.jsonl": table}) / "t.jsonl"
    with pytest.raises(InvalidInput, match=message) as raised:
        read(data, None, "text")
    assert "t.jsonl" in str(raised.value)


FASTA = ">s1 globin\nMKV\nlst*\n\n; comment\n>s2\tkinase \r\nACD-\r\n>s3 globin\nGG\n"


def test_fasta_has_labels_in_headers(tmp_path: Path) -> None:
    """Lines are joined, letters are upper case, and a sequence is named by line and identifier."""
    found = texts(write(tmp_path, {"all.fasta": FASTA}) / "all.fasta")
    assert contents(found.train) == {"globin": ["MKVLST*", "GG"], "kinase": ["ACD-"]}
    names = [photo.name for photo in found.train.photos["globin"]]
    assert names == ["all.fasta:1:s1", "all.fasta:8:s3"]


def test_fasta_files_and_folders_are_classes(tmp_path: Path) -> None:
    """The label is the name of the file, or of the folder, and headers are free."""
    files = write(tmp_path / "1", {"globin.fa": ">s1\nMK\n", "kinase.fa": ">s1 any text\nAC\n"})
    assert contents(texts(files).train) == {"globin": ["MK"], "kinase": ["AC"]}
    folders = write(
        tmp_path / "2", {"globin/1.fna": ">s1\nMK\n>s2\nGG\n", "kinase/1.fna": ">s1\nAC\n"}
    )
    assert contents(texts(folders).train) == {"globin": ["MK", "GG"], "kinase": ["AC"]}
    splits = write(
        tmp_path / "3", {"train.fasta": ">s1 globin\nMK\n", "test.fasta": ">s2 globin\nGG\n"}
    )
    found = texts(splits)
    assert contents(found.train) == {"globin": ["MK"]}
    assert contents(found.held_out["test"]) == {"globin": ["GG"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (">s1 a\nMKV\nMK7\n", r"a\.fasta, line 3: '7' at column 3 is no letter of a sequence"),
        (">s1 a\nMK V\n", "line 2: ' ' at column 3"),
        ("MKV\n", "line 1: a sequence without a header"),
        (">s1 a\n>s2 b\nMK\n", "line 1: '>s1 a' has no sequence"),
        (">s1 a\nMK\n>s2\nMK\n", "line 3: 's2' has no label"),
        ("", "has no sequence"),
        (b">s1 a\n\xff\n", "is not UTF-8 at byte 6"),
    ],
)
def test_broken_fasta_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    """The error has the place."""
    data = write(tmp_path, {"a.fasta": content}) / "a.fasta"
    with pytest.raises(InvalidInput, match=message):
        find_kind(data, None)
