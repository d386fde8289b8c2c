"""Crash-safe files: atomic writes, file locks, and cleanup of temporary files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from topwork.errors import Corrupt, NotFound

TEMPORARY = ".tmp-"
"""Prefix of temporary names, before the rename. Their writers hold a lock on them."""

ABANDONED_AFTER = 3600.0
"""Age in seconds from which ``sweep`` deletes an unlocked temporary file or directory.

A name that cannot be locked, such as a directory on NFS, is never deleted sooner.
"""


class Absent(Corrupt):
    """A file does not exist."""


def sha256(content: bytes) -> str:
    """Return the sha256 in hexadecimal, the name of a stored file."""
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> bytes:
    """Return a file's bytes. Raises Corrupt if it is missing or no regular file."""
    with open_file(path) as file:
        return file.read()


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises Corrupt if it is missing or no regular file.

    Reading a pipe could block for ever, and a symbolic link could point anywhere. Parent
    directories may be symbolic links, so that operators can spread a repository over disks.
    """
    try:
        file = open(path, "rb", opener=_open_nofollow)  # noqa: SIM115  # Path.open takes no opener
    except (FileNotFoundError, NotADirectoryError):
        raise Absent(f"{short_path(path)} is missing") from None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:  # a symbolic link, a socket
            raise _not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular(path)
    return file


def read_verified(path: Path, digest: str) -> bytes:
    """Return a file's bytes. Raises Corrupt if it is missing or its sha256 is not ``digest``."""
    content = read(path)
    if sha256(content) != digest:
        raise Corrupt(
            f"{short_path(path)} has sha256 {sha256(content)}, not {digest}: it was changed"
        )
    return content


def short_path(path: Path) -> str:
    """Return the last parts of a path for messages, which must not reveal the repository's root."""
    return "/".join(path.parts[-4:])


def write_file(
    path: Path, content: bytes, *, under: Callable[[], AbstractContextManager[None]] = nullcontext
) -> None:
    """Write or replace the file ``path`` atomically and durably.

    Only the rename happens ``under`` the given lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, directory=False) as (temporary, descriptor):
        _write_synced(descriptor, content)
        with under():
            temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces ``path`` durably when the block succeeds.

    On any error it is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, directory=False) as (temporary, descriptor):
        with open(descriptor, "wb", closefd=False) as file:
            yield file
        os.fsync(descriptor)
        temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to ``path`` durably when the block succeeds.

    Raises FileExistsError if ``path`` exists by then. On any error the temporary directory is
    deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, directory=True) as (temporary, _):
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            _sync(file)
        try:
            temporary.rename(path)
        except OSError as error:  # rename(2) replaces only empty directories
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise FileExistsError(str(path)) from error
            raise
    sync_directory(path.parent)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, exclusively or ``shared``; other processes and threads wait.

    Raises FileNotFoundError if its directory does not exist, or was moved during the wait.
    """
    while True:
        # Do not follow or truncate: somebody may have replaced the lock file by a link to any file.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                yield
                return
        finally:
            os.close(descriptor)


def touch(path: Path) -> None:
    """Set the modification time to now, finer than the kernel's clock ticks.

    Does not follow symbolic links. Raises FileNotFoundError.
    """
    now = time.time_ns()
    os.utime(path, ns=(now, now), follow_symlinks=False)


def abandoned(directory: Path, *, age: float = ABANDONED_AFTER) -> list[Path]:
    """Return temporary names of crashed writers in ``directory`` older than ``age`` seconds."""
    found = []
    for path in sorted(directory.glob(f"{TEMPORARY}*")):
        with _lock_abandoned(path, age) as is_abandoned:
            if is_abandoned:
                found.append(path)
    return found


def sweep(directory: Path, *, age: float = ABANDONED_AFTER) -> list[Path]:
    """Delete abandoned temporary names and return their paths."""
    return [path for path in abandoned(directory, age=age) if delete_abandoned(path, age=age)]


def delete_abandoned(path: Path, *, age: float = ABANDONED_AFTER) -> bool:
    """Delete a path that ``abandoned`` returned; return False if another process does."""
    with _lock_abandoned(path, age) as is_abandoned:
        return is_abandoned and delete(path)


def move_aside(path: Path) -> Path:
    """Rename a file or directory to a temporary name, for ``delete``, and return that."""
    aside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    touch(path)  # otherwise a concurrent sweep would delete it at once
    return path.rename(aside)


def delete(path: Path) -> bool:
    """Delete a file, directory or link; return False if it does not exist."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    return True


def size(path: Path) -> int:
    """Return the size in bytes of a file or of all files in a directory; 0 if it does not exist.

    Does not follow symbolic links.
    """
    try:
        status = path.lstat()
        return sum(map(size, path.iterdir())) if stat.S_ISDIR(status.st_mode) else status.st_size
    except FileNotFoundError:
        return 0


def sync_directory(directory: Path) -> None:
    """Make created and renamed entries of ``directory`` durable."""
    _sync(directory)


def existing(path: Path, *, kind: str, name: str) -> Path:
    """Return ``path``. Raises NotFound for the ``kind`` and ``name`` if it does not exist."""
    if not path.exists():
        raise NotFound(f"there is no {kind} {name!r}", kind=kind, resource=name)
    return path


def _open_nofollow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _not_regular(path: Path) -> Corrupt:
    return Corrupt(f"{short_path(path)} is no regular file: links and devices are not followed")


def _write_synced(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.fsync(descriptor)


@contextmanager
def _temporary(path: Path, *, directory: bool) -> Iterator[tuple[Path, int]]:
    """Yield a new, locked temporary name beside ``path``, and its descriptor; then delete it."""
    while True:
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        if directory:
            temporary.mkdir()
        flags = os.O_RDONLY if directory else os.O_RDWR | os.O_CREAT | os.O_EXCL
        descriptor = os.open(temporary, flags | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # see ABANDONED_AFTER
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if temporary.exists():  # a sweep may have deleted it before it was locked
                yield temporary, descriptor
                return
        finally:
            os.close(descriptor)
            if directory:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


@contextmanager
def _lock_abandoned(path: Path, age: float) -> Iterator[bool]:
    """Yield True if a temporary name is abandoned, and lock it while the block runs."""
    with contextlib.ExitStack() as stack:
        is_abandoned = False
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # its writer is alive
            status = path.lstat()
            seconds = time.time() - status.st_mtime
            if age == 0 or seconds > age:
                locked = _lock_if_free(path, status, stack)
                is_abandoned = locked or seconds > ABANDONED_AFTER
        yield is_abandoned


def _lock_if_free(path: Path, status: os.stat_result, stack: contextlib.ExitStack) -> bool:
    """Lock a temporary name until ``stack`` closes; return False if it does not support locks.

    Raises BlockingIOError if its writer holds the lock, FileNotFoundError if it does not exist.
    """
    mode = os.O_RDONLY if stat.S_ISDIR(status.st_mode) else os.O_RDWR
    try:
        descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        raise
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
