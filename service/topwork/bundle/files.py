"""Crash-safe files: a crash at any byte leaves the old state or the new one."""

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

from topwork.errors import Corrupt, NotFound

TEMPORARY = ".tmp-"
"""Prefix of names that are not published yet. Their writers lock them as long as they live."""

ABANDONED_AFTER = 3600.0
"""Age in seconds at which such a name that nobody has locked is deleted by itself.

One that cannot be locked, such as a directory on NFS, is never deleted sooner.
"""


def sha256(content: bytes) -> str:
    """Return the digest by which stored files are named, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> bytes:
    """Return a file's bytes. Raises Corrupt if there is none, or something else in its place."""
    with open_file(path) as file:
        return file.read()


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises Corrupt, as ``read``.

    A pipe could take for ever, and a link lead anywhere. Directories above it may be links, by
    which operators spread a repository over disks.
    """
    try:
        file = open(path, "rb", opener=_opened)  # noqa: SIM115  # Path.open takes no opener
    except (FileNotFoundError, NotADirectoryError):
        raise Corrupt(f"{shown(path)} is missing") from None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:  # a link, a socket
            raise _not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular(path)
    return file


def read_verified(path: Path, digest: str) -> bytes:
    """Return a file's bytes. Raises Corrupt if their sha256 is not ``digest`` or there are none."""
    content = read(path)
    if sha256(content) != digest:
        raise Corrupt(f"{shown(path)} has sha256 {sha256(content)}, not {digest}: it was changed")
    return content


def shown(path: Path) -> str:
    """Return the end of a path, for messages: clients need not know where a repository lies."""
    return "/".join(path.parts[-4:])


def write_file(
    path: Path, content: bytes, *, under: Callable[[], AbstractContextManager[None]] = nullcontext
) -> None:
    """Put ``content`` at ``path`` durably, whole or not at all, replacing what was there.

    It is put there ``under`` a lock, if one is given; it is written before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, directory=False) as (temporary, descriptor):
        _write_synced(descriptor, content)
        with under():
            temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` durably when the block ends well.

    Raises FileExistsError if ``path`` exists by then; the temporary directory is gone either way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, directory=True) as (temporary, _):
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
    sync_directory(path.parent)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock that the file ``path`` stands for; other processes and threads wait.

    Any number may hold a ``shared`` one together.
    """
    # Neither through a link nor by writing: in the place of a lock there could be one to anything.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def touch(path: Path) -> None:
    """Give a path the present as its time of change, finer than the kernel's clock ticks.

    A link's own, not that of what it leads to. Raises FileNotFoundError.
    """
    now = time.time_ns()
    os.utime(path, ns=(now, now), follow_symlinks=False)


def abandoned(directory: Path, *, age: float = ABANDONED_AFTER) -> list[Path]:
    """Return what crashed writers left right below ``directory`` more than ``age`` seconds ago."""
    found = []
    for path in sorted(directory.glob(f"{TEMPORARY}*")):
        with _dead(path, age) as dead:
            if dead:
                found.append(path)
    return found


def sweep(directory: Path, *, age: float = ABANDONED_AFTER) -> list[Path]:
    """Delete what ``abandoned`` returns and return the paths."""
    return [path for path in abandoned(directory, age=age) if delete_abandoned(path, age=age)]


def delete_abandoned(path: Path, *, age: float = ABANDONED_AFTER) -> bool:
    """Delete one of what ``abandoned`` returns; return False if somebody else does."""
    with _dead(path, age) as dead:
        return dead and delete(path)


def move_aside(path: Path) -> Path:
    """Give a file or directory a temporary name, by which it is as good as gone, and return it."""
    aside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    touch(path)  # or a sweep would take it for abandoned at once
    return path.rename(aside)


def delete(path: Path) -> bool:
    """Delete a file, a directory or a link; return False if somebody else does."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    return True


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory; 0 if it is just deleted.

    Links count for themselves.
    """
    try:
        status = path.lstat()
        return sum(map(size, path.iterdir())) if stat.S_ISDIR(status.st_mode) else status.st_size
    except FileNotFoundError:
        return 0


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    _sync(directory)


def existing(path: Path, *, kind: str, name: str) -> Path:
    """Return ``path``. Raises NotFound, about the ``kind`` called ``name``, if it is not there."""
    if not path.exists():
        raise NotFound(f"there is no {kind} {name!r}", kind=kind, resource=name)
    return path


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _not_regular(path: Path) -> Corrupt:
    return Corrupt(f"{shown(path)} is no regular file: a link or device is not followed")


def _write_synced(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.fsync(descriptor)


@contextmanager
def _temporary(path: Path, *, directory: bool) -> Iterator[tuple[Path, int]]:
    """Yield a new temporary name beside ``path``, locked, and its descriptor; it is gone after."""
    while True:
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        if directory:
            temporary.mkdir()
        flags = os.O_RDONLY if directory else os.O_RDWR | os.O_CREAT | os.O_EXCL
        descriptor = os.open(temporary, flags | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # see ABANDONED_AFTER
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if temporary.exists():  # and not taken for a dead writer's before it was locked
                yield temporary, descriptor
                return
        finally:
            os.close(descriptor)
            if directory:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


@contextmanager
def _dead(path: Path, age: float) -> Iterator[bool]:
    """Yield whether a temporary name is abandoned; while the block runs no writer locks it."""
    with contextlib.ExitStack() as stack:
        dead = False
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # it is work in progress
            status = path.lstat()
            old = time.time() - status.st_mtime
            if age == 0 or old > age:
                dead = _lock_if_free(path, status, stack) or old > ABANDONED_AFTER
        yield dead


def _lock_if_free(path: Path, status: os.stat_result, stack: contextlib.ExitStack) -> bool:
    """Lock a temporary name until ``stack`` ends; return False if it cannot be locked at all.

    Raises BlockingIOError if its writer lives, FileNotFoundError if it is gone.
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
