"""Full and read-only file systems. Tests are skipped if nothing can be mounted."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small(directory: Path, *, megabytes: int, inodes: int = 10_000) -> Iterator[Path]:
    """Yield a new directory with its own small file system."""
    directory.mkdir()
    options = f"size={megabytes}m,nr_inodes={inodes}"
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(directory))
    try:
        yield directory
    finally:
        _unmount(directory)


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Fill all bytes of a directory's file system while the block runs."""
    filler = directory / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def without_inodes(directory: Path) -> Iterator[None]:
    """Use up all inodes of a directory's file system while the block runs."""
    fillers = directory / "fillers"
    fillers.mkdir()
    try:
        with contextlib.suppress(OSError):
            for number in itertools.count():
                (fillers / str(number)).touch()
        yield
    finally:
        shutil.rmtree(fillers)


@contextlib.contextmanager
def read_only(*directories: Path) -> Iterator[None]:
    """Mount ``directories`` read-only while the block runs; open files stay writable."""
    with contextlib.ExitStack() as stack:
        for directory in directories:
            _mount("--bind", str(directory), str(directory))
            stack.callback(_unmount, directory)
            _mount("-o", "remount,ro,bind", str(directory))
        yield


def _mount(*arguments: str) -> None:
    try:
        ended = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if ended.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {ended.stderr.strip()}")


def _unmount(directory: Path) -> None:
    subprocess.run(["umount", "--lazy", str(directory)], check=True)
