"""Locks as lock files in a directory, by ``flock``."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from topwork.storage import files
from topwork.storage.locks import LockLost

MAX_NAME_BYTES = 200
"""Raising it names longer locks in plain text; a file's name may have 255 bytes."""


class FileLease:
    """A locked file; see ``Lease``."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self._file = file

    def held(self) -> bool:
        """Return True unless the lease was released, or its file was deleted or replaced."""
        if self._file.closed:
            return False
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Unlock the file, which stays."""
        self._file.close()


class FileLocks:
    """Locks between the processes that see one directory; see ``Locks``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> Path:
        """Return the lock file of a name, whether or not it exists."""
        quoted = quote(name, safe="", errors="surrogatepass")
        if len(quoted) > MAX_NAME_BYTES:
            quoted = hashlib.sha256(quoted.encode()).hexdigest()
        return self._directory / f"{quoted}.lock"

    @contextmanager
    def locked(self, name: str, *, shared: bool = False) -> Iterator[Callable[[], None]]:
        """Hold a lock, exclusively or ``shared``; see ``Locks``."""
        path = self.path(name)
        self._directory.mkdir(parents=True, exist_ok=True)
        with files.locked(path, shared=shared):
            own = path.lstat()

            def check() -> None:
                try:
                    held = os.path.samestat(own, path.lstat())
                except FileNotFoundError:
                    held = False
                if not held:
                    raise LockLost(f"the lock file {path} was deleted")

            yield check

    def claim(self, name: str, *, on_wait: Callable[[], None] = lambda: None) -> FileLease:
        """Hold a name until the process ends; waits, after ``on_wait()``."""
        lease = self._lease(name, on_wait)
        assert lease is not None, "a lease that may wait is always granted"
        return lease

    def try_claim(self, name: str) -> FileLease | None:
        """Hold a name if nobody does; None: another process holds it."""
        return self._lease(name, None)

    def _lease(self, name: str, on_wait: Callable[[], None] | None) -> FileLease | None:
        path = self.path(name)
        self._directory.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("a")
            try:
                if not _try_lock(file):
                    if on_wait is None:
                        file.close()
                        return None
                    on_wait()
                    fcntl.flock(file, fcntl.LOCK_EX)
                lease = FileLease(path, file)
                if lease.held():
                    # Else a power failure may lose the file, by which others know the name.
                    files.sync_directory(path.parent)
                    return lease
            except BaseException:
                file.close()
                raise
            file.close()  # deleted while this waited: others would lock a new file


def _try_lock(file: IO[str]) -> bool:
    """Lock ``file`` without waiting; return True if that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
