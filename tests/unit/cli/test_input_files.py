"""Kinds of inputs in files of commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.pictures import picture

from topwork import Embedding, Text
from topwork.cli.input_files import list_inputs
from topwork.cli.input_kinds import PHOTOS, TEXTS, VECTORS
from topwork.cli.labelled_data import read_data, read_test_data
from topwork.errors import ImageError, InvalidInput


def texts(folder: Path, **contents: str) -> Path:
    """Write texts into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    return folder


def test_files_tell_their_kind(tmp_path: Path) -> None:
    """A .txt is a text, a .npy has embeddings, all others are photos; folders by their files."""
    folder = texts(tmp_path / "deep" / "texts", b="two", a="one")
    (folder / "DATA.csv").write_text("left out")
    single = tmp_path / "single.TXT"
    single.write_text("three")
    found = list_inputs([tmp_path / "deep", single], field="images", texts=["given", ""])
    assert found.kind is TEXTS
    assert [read() for _, read in found.items] == [*map(Text, ("given", "", "one", "two", "three"))]
    assert [name.rpartition("/")[2] for name, _ in found.items] == [
        "--text 1", "--text 2", "a.txt", "b.txt", "single.TXT",
    ]  # fmt: skip
    assert [(reason, Path(name).name) for reason, name in found.left_out] == [("text", "DATA.csv")]
    np.save(tmp_path / "rows.npy", np.eye(2, dtype=np.float32))
    found = list_inputs([tmp_path / "rows.npy"], field="images")
    assert found.kind is VECTORS
    assert [read() for _, read in found.items] == [
        Embedding(row.tobytes()) for row in np.eye(2, dtype=np.float32)
    ]
    (folder / "photo.png").write_bytes(picture("blue", 1))
    found = list_inputs([folder], field="images")  # texts beside photos are about them
    assert found.kind is PHOTOS
    assert [name.rpartition("/")[2] for name, _ in found.items] == ["photo.png"]
    assert {Path(name).name for _, name in found.left_out} == {"a.txt", "b.txt", "DATA.csv"}


def test_two_kinds_are_refused_with_both(tmp_path: Path) -> None:
    """The message names a file of each, and what it has."""
    folder = texts(tmp_path / "texts", a="one")
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture("blue", 1))
    np.save(tmp_path / "rows.npy", np.eye(2, dtype=np.float32))
    for paths, given, named in (
        ([folder, photo], [], "texts has texts and .*photo.png has photos"),
        ([photo, tmp_path / "rows.npy"], [], "photo.png has photos and .*rows.npy has embeddings"),
        ([photo], ["a text"], "--text 1 has texts and .*photo.png has photos"),
    ):
        with pytest.raises(InvalidInput, match=named) as caught:
            list_inputs(paths, field="images", texts=given)
        assert "a model takes inputs of one kind" in str(caught.value)


def test_unreadable_texts_are_errors_of_themselves(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, and a file that is too long; the folder is one of texts."""
    folder = texts(tmp_path / "texts", a="one")
    (folder / "b.txt").write_bytes(b"salt \xff")
    (folder / "c.txt").write_bytes(b"x" * (256 * 2**10 + 1))
    (folder / "d.txt").write_bytes(b"zero \0")
    found = dict(list_inputs([folder], field="images").items)
    read = {Path(name).name: reader for name, reader in found.items()}
    assert read["a.txt"]() == Text("one")
    assert read["d.txt"]() == Text("zero \0")
    with pytest.raises(ImageError, match="not UTF-8: invalid start byte at byte 5"):
        read["b.txt"]()
    with pytest.raises(ImageError, match="has 262145 bytes; the limit is 262144"):
        read["c.txt"]()
    with pytest.raises(InvalidInput, match="--text 1 is not UTF-8"):
        list_inputs([], field="images", texts=["\udcff"])
    with pytest.raises(InvalidInput, match="no photo below"):
        list_inputs([texts(tmp_path / "empty")], field="images")


def test_labelled_texts_have_the_layouts_of_photos(tmp_path: Path) -> None:
    """A folder per class, also below splits."""
    for split, count in (("train", 3), ("test", 2)):
        for label in ("sea", "land"):
            named = {f"{split}{n}": f"{label} {n}" for n in range(count)}
            texts(tmp_path / "data" / split / label, **named)
    labelled = read_data(tmp_path / "data")
    assert labelled.source.kind is TEXTS
    photos = labelled.found.train.photos
    assert {label: len(own) for label, own in photos.items()} == {"land": 3, "sea": 3}
    assert labelled.source.content(photos["sea"][0]) == Text("sea 0")
    source, found = read_test_data(tmp_path / "data")
    assert source.kind is TEXTS
    assert {photo.read() for photo in found.photos_of(["sea"])} == {b"sea 0", b"sea 1"}


def test_labelled_embeddings_keep_their_space(tmp_path: Path) -> None:
    """They are sent with the name of the space in the file."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "rows.npz", embeddings=rows, labels=["a", "b"], space="points")
    source, found = read_test_data(tmp_path / "rows.npz")
    (photo,) = found.photos_of(["b"])
    assert source.content(photo) == Embedding(rows[1].tobytes(), "points")
    np.savez(tmp_path / "bare.npz", embeddings=rows)
    with pytest.raises(InvalidInput, match="has no label"):
        read_test_data(tmp_path / "bare.npz")
