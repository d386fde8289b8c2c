"""How files are written so that a crash at any byte leaves the old state or the new one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from topwork.errors import Corrupt, NotFound

TEMPORARY = ".tmp-"
"""Prefix of names that are not published yet; whoever finds an old one may delete it."""

ABANDONED_AFTER = 3600.0
"""Age in seconds at which such a name is no longer somebody's work in progress."""


def sha256(content: bytes) -> str:
    """Return the digest by which stored files are named, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_verified(path: Path, digest: str) -> bytes:
    """Return a file's bytes. Raises Corrupt if their sha256 is not ``digest`` or there are none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"{shown(path)} is missing") from None
    if sha256(content) != digest:
        raise Corrupt(f"{shown(path)} has sha256 {sha256(content)}, not {digest}: it was changed")
    return content


def shown(path: Path) -> str:
    """Return the end of a path, for messages: clients need not know where a repository lies."""
    return "/".join(path.parts[-4:])


def write_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` durably, whole or not at all, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        _write_synced(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` durably when the block ends well.

    Raises FileExistsError if ``path`` exists by then; the temporary directory is gone either way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        sync_directory(temporary)
        try:
            temporary.rename(path)
        except OSError as error:  # rename(2) replaces empty directories only
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise FileExistsError(str(path)) from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_directory(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that the file ``path`` stands for; other processes and threads wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(directory: Path) -> list[Path]:
    """Delete what crashed writers left right below ``directory`` and return the paths."""
    old = time.time() - ABANDONED_AFTER
    swept = []
    for path in sorted(directory.glob(f"{TEMPORARY}*")):
        with contextlib.suppress(FileNotFoundError):  # somebody else sweeps, too
            if path.stat().st_mtime < old:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                swept.append(path)
    return swept


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    _sync(directory)


def existing(path: Path, *, kind: str, name: str) -> Path:
    """Return ``path``. Raises NotFound, about the ``kind`` called ``name``, if it is not there."""
    if not path.exists():
        raise NotFound(f"there is no {kind} {name!r}", kind=kind, resource=name)
    return path


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
