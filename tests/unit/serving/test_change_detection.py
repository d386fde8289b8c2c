"""What a look at all serving.json files tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from topwork.bundle.files import write_file
from topwork.serving.change_detection import read_marks


def model(root: Path, name: str) -> Path:
    """Make a model that serves, and return its serving.json."""
    path = root / name / "serving.json"
    write_file(path, b"{}")
    return path


def test_models_are_those_that_serve(tmp_path: Path) -> None:
    """Folders without a serving.json, other files, and names of no model are left out."""
    for name in ("roses", "roses (copy)", ".hidden"):
        model(tmp_path, name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    assert list(read_marks(tmp_path, ())) == ["roses"]


def test_a_mark_changes_with_the_file(tmp_path: Path) -> None:
    """A mark stays while its file does, and is another when it is replaced by an equal one."""
    path = model(tmp_path, "roses")
    before = read_marks(tmp_path, ())
    assert read_marks(tmp_path, before) == before
    write_file(path, b"{}")
    assert read_marks(tmp_path, before) != before


def test_one_that_cannot_be_read_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose file system is away for a moment has no mark; the others have."""
    for name in ("roses", "tulips"):
        model(tmp_path, name)
    stat = os.stat

    def unsteady(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith("roses"):
            raise OSError(116, "Stale file handle")
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", unsteady)
        marks = read_marks(tmp_path, ())
    assert marks["roses"] is None
    assert marks["tulips"] is not None


def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A missing directory is not taken for one without models."""
    with pytest.raises(FileNotFoundError):
        read_marks(tmp_path / "models", ())
