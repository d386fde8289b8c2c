"""A crash leaves the old state or the new one, and rubbish that is told from work in progress."""

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

from topwork.bundle.files import (
    ABANDONED_AFTER,
    TEMPORARY,
    existing,
    new_directory,
    read_verified,
    sha256,
    sweep,
    write_file,
)
from topwork.errors import Corrupt, NotFound


class PowerCut(BaseException):
    """The machine stops here: no error, and nobody who cleans up."""


@contextmanager
def power_cut(patch: pytest.MonkeyPatch, owner: object, name: str) -> Iterator[None]:
    """Stop the machine where ``name`` is called; what cleans up is without effect by then."""

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
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "no space left")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with what is made durable, and renamed, in the order of the calls.

    Temporary names, which are random, are called ``new``.
    """
    done: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def say(path: Path) -> str:
        return "/".join("new" if TEMPORARY in part else part for part in path.parts[-2:])

    def noted_fsync(descriptor: int) -> None:
        done.append("sync " + say(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        done.append("rename " + say(self))
        return replace(self, target)

    def noted_rename(self: Path, target: Path) -> Path:
        done.append("rename " + say(self))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    monkeypatch.setattr(Path, "rename", noted_rename)
    return done


# Files


def test_a_file_is_replaced(tmp_path: Path) -> None:
    """Writing makes missing directories and replaces what was there."""
    path = tmp_path / "deep" / "file"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=["while writing", "before rename"]
)
def test_power_cut_leaves_the_old_file(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the machine stops before the new file has its name, the old one is whole."""
    path = tmp_path / "file"
    write_file(path, b"old")
    with power_cut(monkeypatch, owner, name):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    (left,) = [other for other in names(tmp_path) if other != "file"]
    assert left.startswith(TEMPORARY)


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=["while writing", "before rename"]
)
def test_a_failed_write_leaves_nothing_but_the_old_file(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing fails, its error comes out, the old file is whole and no temporary is left."""
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="no space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_file_is_durable_before_it_has_its_name(tmp_path: Path, synced: list[str]) -> None:
    """The content is synced, then renamed, then the directory is synced: no order else is safe."""
    write_file(tmp_path / "d" / "file", b"content")
    assert synced == ["sync d/new", "rename d/new", f"sync {tmp_path.name}/d"]


def test_verified_bytes_are_the_file(tmp_path: Path) -> None:
    """A file whose sha256 is right is returned."""
    write_file(tmp_path / "file", b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert read_verified(tmp_path / "file", digest) == b"abc"


def test_a_changed_file_is_corrupt(tmp_path: Path) -> None:
    """A file with another sha256 is Corrupt; the end of its path and both digests are said."""
    path = tmp_path / "a" / "b" / "c" / "file"
    write_file(path, b"abd")
    with pytest.raises(Corrupt) as caught:
        read_verified(path, sha256(b"abc"))
    for part in ("a/b/c/file has", sha256(b"abc"), sha256(b"abd")):
        assert part in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_is_corrupt(tmp_path: Path) -> None:
    """A file that ought to be there and is not is Corrupt; its path is said."""
    with pytest.raises(Corrupt, match=r"/file is missing"):
        read_verified(tmp_path / "file", sha256(b""))


def test_what_does_not_exist_is_not_found(tmp_path: Path) -> None:
    """A path that is there comes back; one that is not is NotFound, with kind and name."""
    assert existing(tmp_path, kind="model", name="models/a") == tmp_path
    with pytest.raises(NotFound) as caught:
        existing(tmp_path / "b", kind="model", name="models/b")
    assert (caught.value.kind, caught.value.resource) == ("model", "models/b")


# Directories


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    """A new directory has its name, and its files, when the block ends and not before."""
    with new_directory(tmp_path / "deep" / "7") as directory:
        (directory / "a").write_bytes(b"a")
        assert not (tmp_path / "deep" / "7").exists()
    assert names(tmp_path / "deep") == ["7"]
    assert names(tmp_path / "deep" / "7") == ["a"]


def test_a_directory_is_durable_before_it_has_its_name(tmp_path: Path, synced: list[str]) -> None:
    """Files are synced, then their directory, then it is renamed, then its parent is synced."""
    with new_directory(tmp_path / "d" / "7") as directory:
        (directory / "a").write_bytes(b"a")
    parent = f"sync {tmp_path.name}/d"
    assert synced == ["sync new/a", "sync d/new", "rename d/new", parent]


def test_a_failed_block_makes_no_directory(tmp_path: Path) -> None:
    """When the block raises, its error comes out and nothing is left."""

    def write_half() -> None:
        with new_directory(tmp_path / "d" / "7") as directory:
            (directory / "a").write_bytes(b"a")
            raise RuntimeError("half of it is written")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    assert names(tmp_path / "d") == []


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "rename")])
def test_power_cut_makes_no_directory(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the machine stops before the rename, only a temporary directory is left."""
    with (
        power_cut(monkeypatch, owner, name),
        new_directory(tmp_path / "d" / "7") as directory,
    ):
        (directory / "a").write_bytes(b"a")
    (left,) = names(tmp_path / "d")
    assert left.startswith(TEMPORARY)


def test_of_two_racing_directories_the_first_stays(tmp_path: Path) -> None:
    """The second to finish gets FileExistsError; the first is whole and nothing else is left."""
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


def test_a_failed_rename_is_no_lost_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the rename fails for want of space, that comes out, not FileExistsError."""
    monkeypatch.setattr(Path, "rename", fail)
    with (
        pytest.raises(OSError, match="no space left") as caught,
        new_directory(tmp_path / "d" / "7") as directory,
    ):
        (directory / "a").write_bytes(b"a")
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path / "d") == []


# Sweeping


def test_sweep_takes_only_what_is_old_and_temporary(tmp_path: Path) -> None:
    """Old temporary files and directories go; young ones and everything else stay."""
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


def test_no_age_makes_a_live_writers_name_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file and half a directory stay while they are written, however old they look."""
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


def test_a_dead_writers_names_are_swept_at_any_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file and half a directory of a moment ago go if that is asked for, and only then."""
    with power_cut(monkeypatch, Path, "replace"):
        write_file(tmp_path / "file", b"content")
    with power_cut(monkeypatch, Path, "rename"), new_directory(tmp_path / "7") as directory:
        (directory / "a").write_bytes(b"a")
    assert sweep(tmp_path) == []
    assert len(sweep(tmp_path, age=0)) == 2
    assert names(tmp_path) == []


def test_a_name_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep in the moment between a name and its lock costs the writer nothing."""
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


def test_what_cannot_be_locked_is_swept_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without locks nobody knows who lives, so only age counts."""

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


def test_nothing_is_swept_where_nothing_is(tmp_path: Path) -> None:
    """A directory that does not exist yet is swept without complaint."""
    assert sweep(tmp_path / "none") == []


def test_two_sweeps_do_not_trip_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vanishes between being seen and being deleted is swept already."""
    gone = tmp_path / f"{TEMPORARY}gone"
    monkeypatch.setattr(Path, "glob", lambda _self, _pattern: iter([gone]))
    assert sweep(tmp_path) == []
