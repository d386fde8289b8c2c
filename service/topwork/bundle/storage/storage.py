"""Storage: files of a repository by key, the seam between its documents and where they lie.

A key is a path relative to the repository's root, such as ``models/flowers/3/head.onnx``. A
directory is a prefix of keys, such as ``models/flowers``; the root is ``""``. ``FileStorage`` keeps
a key as the file of that path, ``ObjectStorage`` as an object with that name.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Container, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, Protocol

Tag = NewType("Tag", str)
"""Changes whenever a file is replaced: an ETag, or inode and modification time."""

ABSENT = Tag("")
"""The tag of a file that does not exist."""

HIDDEN = ".deleted-"
"""Prefix of the name of a directory after ``Storage.hide``."""

ABANDONED_AFTER = 3600.0
"""Age in seconds from which a write that did not finish counts as that of a crashed writer."""


class Unreachable(OSError):
    """The storage cannot be reached now: another attempt may succeed."""


class ForeignName(OSError):
    """A foreign object has a name that is not a path, with which no listing succeeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Facts about a file, or about a directory if ``Storage.entry`` was asked for one."""

    time_ns: int
    """Modification time in ns since 1970, by the clock of ``Storage.now``."""
    size: int
    """Bytes of the file, or of all files of the directory."""

    @property
    def time(self) -> float:
        """The modification time in seconds since 1970."""
        return self.time_ns / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Free space of a storage."""

    free_bytes: int
    free_files: int | None
    """Inodes; None: without limit."""

    def lacks(self, coming: int, files: int, *, least_bytes: int, least_files: int) -> bool:
        """Return True if ``coming`` more bytes in ``files`` files leave too little free space."""
        no_files = self.free_files is not None and self.free_files - files < least_files
        return self.free_bytes - coming < least_bytes or no_files


class Storage(Protocol):
    """Files by key, for concurrent readers and writers in any process of any host.

    All methods raise OSError if the storage cannot be reached, is full, or permits no such access.
    What a method wrote is durable when it returns, and a reader sees a file whole or not at all.
    """

    poll_seconds: float
    """Shortest interval in seconds of ``stamps``: a bucket takes money for each request."""

    def __str__(self) -> str:
        """Return the path or URL of the root, without secrets."""

    def at(self, key: str) -> str:
        """Return the path or URL of a file or directory, for people."""

    # Reading

    def read(self, key: str) -> bytes:
        """Return a file's bytes. Raises Absent if it is missing, Corrupt if no regular file."""

    def read_tagged(self, key: str) -> tuple[bytes, Tag]:
        """Return a file's bytes with its tag, for ``write``. Raises Corrupt as ``read``."""

    def open(self, key: str) -> io.BufferedIOBase:
        """Open a file for reading and seeking. Raises Corrupt as ``read``."""

    def read_verified(self, key: str, digest: str) -> bytes:
        """Return a file's bytes. Raises Corrupt if missing, or its sha256 is not ``digest``."""

    def local(self, key: str, digest: str, *, again: bool = False) -> Path:
        """Return a local file with the bytes of ``key``, to be mapped into memory.

        ``digest`` is their sha256, by which an object store caches them; the caller verifies it.
        ``again`` replaces a cached file that is damaged. The file may be deleted as soon as it is
        open. Raises Corrupt if it is missing.
        """

    def entry(self, key: str) -> Entry | None:
        """Return facts about a file or a directory; None if it does not exist."""

    def exists(self, key: str) -> bool:
        """Return True if there is a file or a directory ``key``."""

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Return the bytes of each of these files that exists."""

    def files(self, directory: str) -> dict[str, Entry]:
        """Return the files directly in a directory by name; none if it does not exist.

        Without names that begin with a dot, which are the storage's own.
        """

    def directories(self, directory: str) -> list[str]:
        """Return the sorted names of the directories in a directory, also of hidden models.

        Without other names that begin with a dot.
        """

    # Writing

    def write(self, key: str, content: bytes, *, expected: Tag | None = None) -> None:
        """Write or replace a file.

        With ``expected``, only if the file still has this tag; ABSENT: if there is none. Raises
        Stale if it has another. A file system compares nothing: its writers hold the lock.
        """

    def write_at(self, key: str, content: bytes, time_ns: int) -> None:
        """Write or replace a file with a modification time of its own.

        An object store has such times only for keys that end with ``.gone``; other files get the
        time of the write.
        """

    def create(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Create a directory with files, of which readers see none before the last.

        Raises FileExistsError if it exists by then, also if another writer creates it now.
        """

    def make_directory(self, directory: str) -> None:
        """Create a directory unless it exists: one that ``locked`` will be asked for."""

    def delete(self, key: str) -> bool:
        """Delete a file or a directory; return False if it does not exist.

        Its name is free when this returns, and a crash does not restore it.
        """

    def hide(self, directory: str) -> None:
        """Give ``parent/name`` the name ``parent/HIDDENname``, with the current time."""

    def unhide(self, directory: str) -> None:
        """Give the directory that was ``hide``'s back its name."""

    # Blobs: files by sha256, which garbage collection deletes when they are old

    def put_blob(self, key: str, content: bytes) -> None:
        """Store a blob, or refresh it if it is stored, and repair it if it is damaged.

        Not while another process deletes blobs.
        """

    def refresh(self, keys: Collection[str]) -> set[str]:
        """Set the times of blobs to now; return those that do not exist.

        Not while another process deletes blobs. Blobs are files, or directories of files.
        """

    def holding(self, keys: Collection[str]) -> AbstractContextManager[set[str]]:
        """``refresh`` blobs, make them durable, and block deletion of blobs while the block runs.

        Yields those that do not exist. The block must not refresh or write blobs.
        """

    def refreshed(self, directory: str) -> dict[str, Entry]:
        """Return the blobs directly in a directory by name, with times that ``refresh`` may set."""

    def delete_blob(self, key: str, time_ns: int) -> bool:
        """Delete a blob, unless its time is no longer ``time_ns``; return True if it did."""

    # Locks and clock

    def locked(self, directory: str, *, shared: bool = False) -> AbstractContextManager[None]:
        """Hold the lock of a directory; other processes and threads wait.

        Raises FileNotFoundError if the directory does not exist, or was hidden during the wait.
        Deleting blobs takes the root's exclusively, refreshing them shared.
        """

    def now(self) -> float:
        """Return the time of the clock that sets modification times, in seconds since 1970."""

    # Watching and maintenance

    def stamps(
        self, names: Sequence[str], known: Container[str], *, only: str | None = None
    ) -> dict[str, Hashable | None]:
        """Return for each model what changes when one of its documents is replaced.

        It is the first of ``names`` that exists, which are serving.json, draft.json, review.json;
        models without any are left out. None: it cannot be read now. ``only`` is the name of the
        only model to look at; None: all. Names not in ``known`` are checked. Raises
        FileNotFoundError if there has never been a model.
        """

    def space(self) -> Space | None:
        """Return the free space; None: without limit."""

    def abandoned(self, *, age: float = ABANDONED_AFTER) -> dict[str, Entry]:
        """Return what crashed writers left more than ``age`` seconds ago, by key.

        ``entry`` and ``exists`` may not see it.
        """

    def delete_abandoned(self, key: str, *, age: float = ABANDONED_AFTER) -> bool:
        """Delete what ``abandoned`` returned; return False if it is gone, or in use."""
