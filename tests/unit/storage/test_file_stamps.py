"""A repository in files has the stamps of all serving.json files."""

from __future__ import annotations

import os
from collections.abc import Container, Hashable
from pathlib import Path
from typing import Any

import pytest

from topwork.bundle.store import Repository
from topwork.storage.files import write_file


def read_stamps(
    root: Path, known: Container[str], *, only: str | None = None
) -> dict[str, Hashable | None]:
    """Return the stamps of the models in a repository."""
    return Repository(root).stamps(["serving.json", "draft.json"], known, only=only)


def model(root: Path, name: str) -> Path:
    """Create a model with a serving.json, and return its path."""
    path = root / "models" / name / "serving.json"
    write_file(path, b"{}")
    return path


def test_read_stamps_ignores_other_entries(tmp_path: Path) -> None:
    """Directories without a serving.json, files, and invalid model names are left out."""
    for name in ("roses", "roses (copy)", ".hidden"):
        model(tmp_path, name)
    (tmp_path / "models/empty").mkdir()
    (tmp_path / "models/file").write_bytes(b"")
    assert list(read_stamps(tmp_path, ())) == ["roses"]


def test_stamp_changes_when_the_file_is_replaced(tmp_path: Path) -> None:
    """A stamp changes even if the new file has the same content."""
    path = model(tmp_path, "roses")
    before = read_stamps(tmp_path, ())
    assert read_stamps(tmp_path, before) == before
    write_file(path, b"{}")
    assert read_stamps(tmp_path, before) != before


def test_draft_has_a_stamp_until_the_model_serves(tmp_path: Path) -> None:
    """draft.json counts only without serving.json; ``only`` looks at one model."""
    draft = tmp_path / "models/roses/draft.json"
    write_file(draft, b"{}")
    model(tmp_path, "tulips")
    before = read_stamps(tmp_path, ())
    assert before.keys() == {"roses", "tulips"}
    assert read_stamps(tmp_path, (), only="roses") == {"roses": before["roses"]}
    assert read_stamps(tmp_path, (), only="..") == {}
    assert read_stamps(tmp_path, (), only="lilies") == {}
    write_file(draft, b"{}")
    assert read_stamps(tmp_path, before)["roses"] != before["roses"]
    model(tmp_path, "roses")
    serving = read_stamps(tmp_path, ())
    write_file(draft, b"{}")
    assert read_stamps(tmp_path, ()) == serving


def test_unreadable_model_does_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp of a model with an OSError is None; other models have theirs."""
    for name in ("roses", "tulips"):
        model(tmp_path, name)
    stat = os.stat

    def unsteady(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith("roses"):
            raise OSError(116, "Stale file handle")
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", unsteady)
        stamps = read_stamps(tmp_path, ())
    assert stamps["roses"] is None
    assert stamps["tulips"] is not None


def test_missing_directory_raises(tmp_path: Path) -> None:
    """A missing directory is not an empty repository."""
    with pytest.raises(FileNotFoundError):
        read_stamps(tmp_path / "models", ())
