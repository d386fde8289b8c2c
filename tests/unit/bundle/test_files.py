"""Crash-safe files: atomic writes, and cleanup of temporary files of dead writers."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from topwork.errors import Corrupt, NotFound
from topwork.storage.files import (
    ABANDONED_AFTER,
    TEMPORARY,
    existing,
    new_directory,
    read_verified,
    sha256,
    sweep,
    write_file,
)


class PowerCut(BaseException):
    """Simulates a power failure, after which no cleanup code runs."""


@contextmanager
def power_cut(patch: pytest.MonkeyPatch, owner: object, name: str) -> Iterator[None]:
    """Simulate a power failure when ``name`` is called; cleanup code has no effect."""

    def stop(*_args: object, **_options: object) -> None:
        raise PowerCut

    with patch.context() as while_off:
        while_off.setattr(owner, name, stop)
        while_off.setattr(Path, "unlink", lambda *_args, **_options: None)
        while_off.setattr(shutil, "rmtree", lambda *_args, **_options: None)
        with pytest.raises(PowerCut):
            yield


def names(directory: Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def fail(*_args: object, **_options: object) -> None:
    """Raise the error of a full disk."""
    raise OSError(errno.ENOSPC, "no space left")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which all calls of fsync and rename are added, in order.

    Temporary names, which are random, are replaced by ``new``.
    """
    calls: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def short(path: Path) -> str:
        return "/".join("new" if TEMPORARY in part else part for part in path.parts[-2:])

    def recording_fsync(descriptor: int) -> None:
        calls.append("sync " + short(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def recording_replace(self: Path, target: Path) -> Path:
        calls.append("rename " + short(self))
        return replace(self, target)

    def recording_rename(self: Path, target: Path) -> Path:
        calls.append("rename " + short(self))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    monkeypatch.setattr(Path, "rename", recording_rename)
    return calls


# Files


def test_write_file_replaces_a_file(tmp_path: Path) -> None:
    """write_file creates missing directories and replaces an existing file."""
    path = tmp_path / "deep" / "file"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=["while writing", "before rename"]
)
def test_power_failure_in_write_file_leaves_the_old_file(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure before the rename leaves the old file unchanged."""
    path = tmp_path / "file"
    write_file(path, b"old")
    with power_cut(monkeypatch, owner, name):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    (left,) = [name for name in names(tmp_path) if name != "file"]
    assert left.startswith(TEMPORARY)


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=["while writing", "before rename"]
)
def test_error_in_write_file_leaves_only_the_old_file(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write error is raised, the old file is unchanged and no temporary file is left."""
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="no space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_write_file_syncs_before_the_rename(tmp_path: Path, synced: list[str]) -> None:
    """The file is synced, then renamed, then the directory is synced; no other order is safe."""
    write_file(tmp_path / "d" / "file", b"content")
    assert synced == ["sync d/new", "rename d/new", f"sync {tmp_path.name}/d"]


def test_read_verified_returns_the_content(tmp_path: Path) -> None:
    """A file with the expected sha256 is returned."""
    write_file(tmp_path / "file", b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert read_verified(tmp_path / "file", digest) == b"abc"


def test_read_verified_of_a_changed_file_is_corrupt(tmp_path: Path) -> None:
    """The message has both digests and the end of the path, not the repository's root."""
    path = tmp_path / "a" / "b" / "c" / "file"
    write_file(path, b"abd")
    with pytest.raises(Corrupt) as caught:
        read_verified(path, sha256(b"abc"))
    for part in ("a/b/c/file has", sha256(b"abc"), sha256(b"abd")):
        assert part in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_read_verified_of_a_missing_file_is_corrupt(tmp_path: Path) -> None:
    """The message has the path of the missing file."""
    with pytest.raises(Corrupt, match=r"/file is missing"):
        read_verified(tmp_path / "file", sha256(b""))


def test_existing_of_a_missing_path_is_not_found(tmp_path: Path) -> None:
    """A path that exists is returned; a missing path is NotFound with kind and name."""
    assert existing(tmp_path, kind="model", name="models/a") == tmp_path
    with pytest.raises(NotFound) as caught:
        existing(tmp_path / "b", kind="model", name="models/b")
    assert (caught.value.kind, caught.value.resource) == ("model", "models/b")


# Directories


def test_new_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    """The directory gets its final name, with all files, when the block ends."""
    with new_directory(tmp_path / "deep" / "7") as directory:
        (directory / "a").write_bytes(b"a")
        assert not (tmp_path / "deep" / "7").exists()
    assert names(tmp_path / "deep") == ["7"]
    assert names(tmp_path / "deep" / "7") == ["a"]


def test_new_directory_syncs_before_the_rename(tmp_path: Path, synced: list[str]) -> None:
    """Files and directory are synced, then it is renamed, then its parent is synced."""
    with new_directory(tmp_path / "d" / "7") as directory:
        (directory / "a").write_bytes(b"a")
    parent = f"sync {tmp_path.name}/d"
    assert synced == ["sync new/a", "sync d/new", "rename d/new", parent]


def test_error_in_the_block_leaves_no_new_directory(tmp_path: Path) -> None:
    """If the block raises, the error is raised and nothing is left."""

    def write_half() -> None:
        with new_directory(tmp_path / "d" / "7") as directory:
            (directory / "a").write_bytes(b"a")
            raise RuntimeError("half written")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    assert names(tmp_path / "d") == []


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "rename")])
def test_power_failure_leaves_only_a_temporary_directory(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure before the rename leaves only a temporary directory."""
    with (
        power_cut(monkeypatch, owner, name),
        new_directory(tmp_path / "d" / "7") as directory,
    ):
        (directory / "a").write_bytes(b"a")
    (left,) = names(tmp_path / "d")
    assert left.startswith(TEMPORARY)


def test_slower_of_two_racing_new_directories_fails(tmp_path: Path) -> None:
    """The second to finish gets FileExistsError; only the complete first directory is left."""
    path = tmp_path / "d" / "7"
    with ExitStack() as second:
        directory = second.enter_context(new_directory(path))
        (directory / "who").write_bytes(b"second")
        with new_directory(path) as first:
            (first / "who").write_bytes(b"first")
        with pytest.raises(FileExistsError, match="7"):
            second.close()
    assert (path / "who").read_bytes() == b"first"
    assert names(tmp_path / "d") == ["7"]


def test_full_disk_at_the_rename_is_no_lost_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the rename fails for lack of space, that error is raised, not FileExistsError."""
    monkeypatch.setattr(Path, "rename", fail)
    with (
        pytest.raises(OSError, match="no space left") as caught,
        new_directory(tmp_path / "d" / "7") as directory,
    ):
        (directory / "a").write_bytes(b"a")
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path / "d") == []


# Sweeping


def test_sweep_deletes_only_old_temporary_names(tmp_path: Path) -> None:
    """Old temporary files and directories are deleted; new ones and all other files stay."""
    old, young = time.time() - ABANDONED_AFTER - 60, time.time() - ABANDONED_AFTER + 60
    for name in (f"{TEMPORARY}file", "file", f"{TEMPORARY}young"):
        (tmp_path / name).write_bytes(b"")
    for name in (f"{TEMPORARY}directory", "directory"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_bytes(b"")
    for path in tmp_path.iterdir():
        os.utime(path, times=(old, old))
    os.utime(tmp_path / f"{TEMPORARY}young", times=(young, young))
    swept = sweep(tmp_path)
    assert {path.name for path in swept} == {f"{TEMPORARY}file", f"{TEMPORARY}directory"}
    assert names(tmp_path) == [f"{TEMPORARY}young", "directory", "file"]


def test_sweep_retains_files_of_live_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and a directory that are being written stay, even if they look old."""
    swept: list[Path] = []
    replace = Path.replace

    def sweep_first(self: Path, target: Path) -> Path:
        swept.extend(sweep(tmp_path, age=0))
        return replace(self, target)

    with new_directory(tmp_path / "7") as directory:
        (directory / "a").write_bytes(b"a")
        os.utime(directory, times=(0, 0))
        monkeypatch.setattr(Path, "replace", sweep_first)
        write_file(tmp_path / "file", b"content")
    assert swept == []
    assert names(tmp_path) == ["7", "file"]


def test_sweep_with_age_0_deletes_files_of_dead_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new partial file and directory are deleted with age=0, and only then."""
    with power_cut(monkeypatch, Path, "replace"):
        write_file(tmp_path / "file", b"content")
    with power_cut(monkeypatch, Path, "rename"), new_directory(tmp_path / "7") as directory:
        (directory / "a").write_bytes(b"a")
    assert sweep(tmp_path) == []
    assert len(sweep(tmp_path, age=0)) == 2
    assert names(tmp_path) == []


def test_write_file_retries_if_its_file_is_swept_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep between the creation and the lock of a temporary file does no harm."""
    lock = fcntl.flock
    swept: list[Path] = []

    def sweep_first(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_SH and not swept:
            swept.extend(tmp_path.glob(f"{TEMPORARY}*"))
            swept[0].unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    write_file(tmp_path / "file", b"content")
    assert len(swept) == 1
    assert names(tmp_path) == ["file"]


def test_sweep_without_file_locks_goes_by_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks a live writer cannot be detected, so only old files are deleted."""

    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_file(tmp_path / "file", b"content")
    old, young = tmp_path / f"{TEMPORARY}old", tmp_path / f"{TEMPORARY}young"
    for path in (old, young):
        path.write_bytes(b"")
    then = time.time() - ABANDONED_AFTER - 60
    os.utime(old, times=(then, then))
    assert sweep(tmp_path, age=0) == [old]


def test_sweep_of_a_missing_directory_deletes_nothing(tmp_path: Path) -> None:
    """A directory that does not exist is no error."""
    assert sweep(tmp_path / "none") == []


def test_sweep_ignores_files_that_another_sweep_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is deleted after it was listed is no error."""
    gone = tmp_path / f"{TEMPORARY}gone"
    monkeypatch.setattr(Path, "glob", lambda _self, _pattern: iter([gone]))
    assert sweep(tmp_path) == []
