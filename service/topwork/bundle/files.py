"""How files are written so that a crash at any byte leaves the old state or the new one."""

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


def abandoned(directory: Path) -> list[Path]:
    """Return what crashed writers left right below ``directory`` more than an hour ago."""
    old = time.time() - ABANDONED_AFTER
    found = []
    for path in sorted(directory.glob(f"{TEMPORARY}*")):
        with contextlib.suppress(FileNotFoundError):  # it was work in progress
            if path.lstat().st_mtime < old:
                found.append(path)
    return found


def sweep(directory: Path) -> list[Path]:
    """Delete what ``abandoned`` returns and return the paths."""
    return [path for path in abandoned(directory) if delete(path)]


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
