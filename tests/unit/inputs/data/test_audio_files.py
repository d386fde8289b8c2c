"""Audio in folders, found by the suffixes of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from topwork.audio_files import is_audio
from topwork.errors import InvalidInput
from topwork.inputs.data.layouts import find_kind, read


def tree(root: Path, *names: str) -> Path:
    """Return a folder with files of these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"text" if name.endswith("txt") else b"RIFF\0")
    return root


def test_suffixes() -> None:
    """In any case; a name without one is none."""
    names = ("a.wav", "b.FLAC", Path("c.Ogg"), "d.oga", "e.opus", "f.mp3")
    assert all(is_audio(name) for name in names)
    assert not any(is_audio(name) for name in ("wav", "a.wav.jpg", "a.aiff", ".wav"))


def test_a_folder_of_recordings_is_audio(tmp_path: Path) -> None:
    """Also in splits; text files beside them are left out."""
    tree(tmp_path, "train/a/1.wav", "train/b/2.MP3", "test/a/3.flac", "train/a/readme.txt")
    kind, found = find_kind(tmp_path, None)
    assert kind == "audio"
    assert {label: len(own) for label, own in found.train.photos.items()} == {"a": 1, "b": 1}
    assert [*found.held_out] == ["test"]


def test_a_manifest_of_recordings_is_audio(tmp_path: Path) -> None:
    """By the suffixes of the paths."""
    tree(tmp_path, "1.wav", "2.ogg")
    (tmp_path / "rows.csv").write_text("path,label\n1.wav,a\n2.ogg,b\n")
    kind, found = find_kind(tmp_path / "rows.csv", None)
    assert kind == "audio"
    assert sorted(found.train.photos) == ["a", "b"]


def test_audio_beside_photos_is_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    """The error has a file of each; --kind leaves the others out."""
    tree(tmp_path, "a/1.wav", "b/2.jpg", "b/3.wav")
    with pytest.raises(InvalidInput, match=r"has audio \(\S*1.wav\) and others \(\S*2.jpg\)"):
        find_kind(tmp_path, None)
    assert find_kind(tmp_path, {"a"})[0] == "audio"
    found = read(tmp_path, None, "audio")
    assert {label: len(own) for label, own in found.train.photos.items()} == {"a": 1, "b": 1}
    assert [reason for reason, _ in found.omitted] == ["kind"]


def test_a_recording_among_photos_changes_nothing(tmp_path: Path) -> None:
    """A voice note beside the photos of a phone is an unreadable photo, as before."""
    tree(tmp_path, "a/1.jpg", "a/2.jpg", "a/note.mp3", "b/1.jpg")
    kind, found = find_kind(tmp_path, None)
    assert kind == "image"
    assert len(found.train.photos["a"]) == 3
