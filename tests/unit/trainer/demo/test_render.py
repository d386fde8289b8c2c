"""The demo data set is drawn the same way every time, whoever asks and for however many."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from topwork_trainer.demo import render as module
from topwork_trainer.demo.flowers import LABELS
from topwork_trainer.demo.render import render, write_dataset


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("label", LABELS)
def test_same_call_same_picture(label: str) -> None:
    """The same label, index and seed give the same bytes."""
    assert encoded(render(label, 3, seed=7)) == encoded(render(label, 3, seed=7))


def test_label_index_and_seed_all_count() -> None:
    """A picture with another label, index or seed is another picture."""
    pictures = [render("daisy", 0), render("tulips", 0), render("daisy", 1)]
    pictures.append(render("daisy", 0, seed=1))
    assert len({encoded(picture) for picture in pictures}) == len(pictures)


def test_sizes_vary_within_their_range() -> None:
    """Pictures are RGB, upright and lying, with a short side of 180 to 420 pixels."""
    pictures = [render(label, index) for label in LABELS for index in range(2)]
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert all(180 <= min(picture.size) <= 420 for picture in pictures)
    assert {picture.width > picture.height for picture in pictures} == {True, False}


def test_unknown_label_is_named() -> None:
    """A label that is not drawn raises ValueError with the label in its message."""
    with pytest.raises(ValueError, match="orchid"):
        render("orchid", 0)


def test_file_does_not_depend_on_how_many_are_asked_for(tmp_path: Path) -> None:
    """The first file of each label is the same in a data set of one and of two a label."""
    one = write_dataset(tmp_path / "one", images_per_label=1)
    two = write_dataset(tmp_path / "two", images_per_label=2)[::2]
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_worker_processes_write_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files drawn in worker processes have the same bytes as files drawn in this one."""
    here = write_dataset(tmp_path / "here", images_per_label=1, seed=5)
    monkeypatch.setattr(module, "_POOL_FROM", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    there = write_dataset(tmp_path / "there", images_per_label=1, seed=5)
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


def test_data_set_has_its_pictures_and_a_note(tmp_path: Path) -> None:
    """A folder a label and RENDERED.txt are all that is written."""
    paths = write_dataset(tmp_path, images_per_label=1)
    expected = {tmp_path / label / f"{label}-00000.jpg" for label in LABELS}
    assert set(paths) == expected
    note = tmp_path / "RENDERED.txt"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*expected, note}


def test_note_says_that_the_pictures_are_rendered(tmp_path: Path) -> None:
    """RENDERED.txt says that the pictures are rendered, by what, and from which seed."""
    write_dataset(tmp_path, images_per_label=0, seed=42)
    note = (tmp_path / "RENDERED.txt").read_text(encoding="utf-8")
    assert "rendered" in note
    assert "topwork_trainer.demo.render" in note
    assert "Seed: 42" in note


def test_progress_is_told_once_a_file(tmp_path: Path) -> None:
    """on_done is called as many times as files are returned."""
    calls: list[None] = []
    paths = write_dataset(tmp_path, images_per_label=1, on_done=lambda: calls.append(None))
    assert len(calls) == len(paths)
