"""The renderer of the demo data set is deterministic."""

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
    """Another label, index or seed gives another picture."""
    pictures = [render("daisy", 0), render("tulips", 0), render("daisy", 1)]
    pictures.append(render("daisy", 0, seed=1))
    assert len({encoded(picture) for picture in pictures}) == len(pictures)


def test_sizes_vary_within_their_range() -> None:
    """Pictures are RGB, portrait or landscape, with a short side of 180 to 420 pixels."""
    pictures = [render(label, index) for label in LABELS for index in range(2)]
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert all(180 <= min(picture.size) <= 420 for picture in pictures)
    assert {picture.width > picture.height for picture in pictures} == {True, False}


def test_unknown_label_is_named() -> None:
    """An unknown label raises ValueError with the label in its message."""
    with pytest.raises(ValueError, match="orchid"):
        render("orchid", 0)


def test_file_does_not_depend_on_the_size_of_the_data_set(tmp_path: Path) -> None:
    """The first file of each label is the same in data sets of one and two pictures per label."""
    small = write_dataset(tmp_path / "small", images_per_label=1)
    large = write_dataset(tmp_path / "large", images_per_label=2)[::2]
    assert [path.name for path in small] == [path.name for path in large]
    assert [path.read_bytes() for path in small] == [path.read_bytes() for path in large]


def test_worker_processes_write_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files rendered in worker processes have the same bytes as files rendered in this process."""
    here = write_dataset(tmp_path / "here", images_per_label=1, seed=5)
    monkeypatch.setattr(module, "_POOL_FROM", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    there = write_dataset(tmp_path / "there", images_per_label=1, seed=5)
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


def test_data_set_has_its_pictures_and_a_note(tmp_path: Path) -> None:
    """The data set has one folder per label and RENDERED.txt, and nothing else."""
    paths = write_dataset(tmp_path, images_per_label=1)
    expected = {tmp_path / label / f"{label}-00000.jpg" for label in LABELS}
    assert set(paths) == expected
    note = tmp_path / "RENDERED.txt"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*expected, note}


def test_note_says_that_the_pictures_are_rendered(tmp_path: Path) -> None:
    """RENDERED.txt says that the pictures are rendered, by which module and from which seed."""
    write_dataset(tmp_path, images_per_label=0, seed=42)
    note = (tmp_path / "RENDERED.txt").read_text(encoding="utf-8")
    assert "rendered" in note
    assert "topwork_trainer.demo.render" in note
    assert "Seed: 42" in note


def test_on_done_is_called_once_per_file(tmp_path: Path) -> None:
    """``on_done`` is called once for each returned file."""
    calls: list[None] = []
    paths = write_dataset(tmp_path, images_per_label=1, on_done=lambda: calls.append(None))
    assert len(calls) == len(paths)
