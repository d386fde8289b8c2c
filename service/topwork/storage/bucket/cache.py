"""Read-through cache of an object store on the local disk, bounded in bytes, for all processes.

    blobs/<sha256>          content of an immutable file
    documents/<sha256>      tag and content of a small file, by the sha256 of its URL

Files are filled under a temporary name. A full or damaged disk makes reads slower, not wrong: an
entry is verified when it is used, and what cannot be stored is served without it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import tempfile
import threading
import time
import uuid
from collections import OrderedDict, deque
from pathlib import Path

from topwork.storage.storage import Tag

GRACE = 10.0
"""Seconds after its use in which an entry is not evicted, so that its reader can open it."""

_TOUCH_AFTER = 2.0
_SCANS = 16
"""Each process looks at the size of the cache after it has added this fraction of the limit."""
_UNSTORED = 16
"""Number of files that are kept beside a full cache, until their readers have opened them."""
_MEMORY = 16 << 20
"""Bytes of documents that a process has in memory."""
_TEMPORARY = ".tmp-"


class Cache:
    """Content by sha256 and documents by URL; evicts what was used least recently.

    Several processes may exceed ``limit`` bytes by a 16th each.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        self._limit = limit
        self._mutex = threading.Lock()
        self._added = limit  # look at the size when the first entry is added
        self._documents: OrderedDict[str, tuple[Tag, bytes]] = OrderedDict()
        self._in_memory = 0
        self._unstored: deque[Path] = deque()

    def path(self, digest: str) -> Path | None:
        """Return the file of a blob, not verified; None if it is not cached."""
        path = self.directory / "blobs" / digest
        return path if _touch(path) else None

    def blob(self, digest: str) -> bytes | None:
        """Return the content of a blob; None if it is not cached. Deletes a damaged entry."""
        path = self.directory / "blobs" / digest
        if not _touch(path):
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() == digest:
            return content
        self.forget(digest)
        return None

    def put_blob(self, digest: str, content: bytes) -> Path | None:
        """Store content that has this digest; return its file, or None if the disk refuses it."""
        path = self.directory / "blobs" / digest
        return path if self._store(path, content) else None

    def forget(self, digest: str) -> None:
        """Delete the entry of a blob."""
        with contextlib.suppress(OSError):
            (self.directory / "blobs" / digest).unlink(missing_ok=True)

    def temporary(self, content: bytes) -> Path:
        """Return a file beside a full cache, which exists until some others were asked for.

        Raises OSError if neither the temporary directory nor the shared memory has space.
        """
        for directory in (tempfile.gettempdir(), "/dev/shm"):  # noqa: S108  # private files in it
            try:
                path = _write(Path(directory) / f"topwork-{uuid.uuid4().hex}", content)
            except OSError as error:
                last = error
                continue
            with self._mutex:
                if not self._unstored:
                    atexit.register(self._delete_unstored, 0)
                self._unstored.append(path)
            self._delete_unstored(_UNSTORED)
            return path
        raise last

    def document(self, url: str) -> tuple[Tag, bytes] | None:
        """Return tag and content of a small file as they were read last; None if unknown."""
        with self._mutex:
            if (found := self._documents.get(url)) is not None:
                self._documents.move_to_end(url)
                return found
        path = self._document_path(url)
        if not _touch(path):
            return None
        try:
            head, _, rest = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        digest, _, tag = head.decode("utf-8", "replace").partition(" ")
        if hashlib.sha256(rest).hexdigest() != digest:
            return None
        found = Tag(tag), rest
        self._remember(url, found)
        return found

    def put_document(self, url: str, tag: Tag, content: bytes) -> None:
        """Store tag and content of a small file."""
        self._remember(url, (tag, content))
        head = f"{hashlib.sha256(content).hexdigest()} {tag}\n".encode()
        self._store(self._document_path(url), head + content)

    def _document_path(self, url: str) -> Path:
        return self.directory / "documents" / hashlib.sha256(url.encode()).hexdigest()

    def _remember(self, url: str, found: tuple[Tag, bytes]) -> None:
        with self._mutex:
            old = self._documents.pop(url, None)
            self._in_memory += len(found[1]) - (len(old[1]) if old else 0)
            self._documents[url] = found
            while self._in_memory > _MEMORY:
                _, (_, content) = self._documents.popitem(last=False)
                self._in_memory -= len(content)

    def _store(self, path: Path, content: bytes) -> bool:
        if len(content) > self._limit:
            return False
        self._make_room(len(content))
        for attempt in (1, 2):
            temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _write(temporary, content).replace(path)
                return True
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                if attempt == 1:
                    self._evict(2 * len(content))
        return False

    def _make_room(self, size: int) -> None:
        with self._mutex:
            self._added += size
            if self._added < self._limit // _SCANS:
                return
            self._added = 0
        self._evict(size)

    def _evict(self, size: int) -> None:
        """Delete the entries that were used least recently, until ``size`` bytes fit."""
        entries, total, now = [], 0, time.time()
        for name in ("blobs", "documents"):
            with contextlib.suppress(OSError), os.scandir(self.directory / name) as found:
                for entry in found:
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        total += status.st_size
                        entries.append((status.st_mtime, status.st_size, entry.path))
        allowed = self._limit - self._limit // _SCANS - size
        for used, length, path in sorted(entries):
            if total <= allowed:
                return
            if now - used > GRACE:
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                    total -= length

    def _delete_unstored(self, most: int) -> None:
        with self._mutex:
            while len(self._unstored) > most:
                with contextlib.suppress(OSError):
                    self._unstored.popleft().unlink()


def _touch(path: Path) -> bool:
    """Note that an entry is used now; return False if there is none."""
    try:
        status = path.lstat()
        if abs(time.time() - status.st_mtime) > _TOUCH_AFTER:
            os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # a cache that is read-only here
    return True


def _write(path: Path, content: bytes) -> Path:
    """Write a new file that only its owner may read; delete it on any error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
