"""Files of an embedding run, in a directory or in a bucket, for several concurrent processes.

Objects of a bucket are whole and never changed: a process creates each only if it is absent.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from topwork import bucket_files
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.printable import file_name, printable
from topwork.storage import files
from topwork.storage.location import Location

LOCK = "plan.lock"
BEGIN = "begin.lock"

_BACKBONE = re.compile(r"backbones/[0-9a-f]{64}/(backbone\.onnx|backbone\.json)")


class RunFiles(Protocol):
    """Files of a run by name. All methods raise OSError, or InvalidInput for that of a bucket."""

    location: Location
    is_atomic: bool
    """True if each stored file is whole; False if a crash of the machine may have damaged it."""

    def __str__(self) -> str:
        """Return the location for messages."""

    def stored(self, names: Collection[str]) -> set[str]:
        """Return those of the ``names`` that exist."""

    def source(self, name: str) -> Path | io.BytesIO:
        """Return a file for a reader of Parquet. Raises Corrupt if a bucket lacks it."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None if it does not exist."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists; return True if it was written."""

    def write(self, name: str, content: bytes) -> bool:
        """Write a part, atomically; return False if another process has written it meanwhile."""

    def claimed(self, part: int, *, wait: bool) -> AbstractContextManager[bool]:
        """Lock a part during the block, if there are locks; yield False if another process has."""

    def backbones(self) -> AbstractContextManager[Repository]:
        """Yield a repository with the backbones of the run, for reading."""

    def new_backbones(self) -> AbstractContextManager[Repository]:
        """Yield a repository whose backbones are those of the run after the block."""


def open_run(location: Location) -> RunFiles:
    """Return the files of a run at a location. Raises InvalidInput if it cannot be one."""
    if isinstance(location, Path):
        return RunDirectory(location)
    return RunBucket(location)


class RunDirectory:
    """Implements RunFiles for a directory. Its lock file has a byte for each part.

    Byte-range locks also hold between machines on NFS. Without working locks two processes may
    embed the same part, and write the same file.
    """

    is_atomic = False

    def __init__(self, path: Path) -> None:
        self.location: Location = path
        self._path = path

    def __str__(self) -> str:
        return file_name(self._path)

    def stored(self, names: Collection[str]) -> set[str]:
        """See RunFiles."""
        return {name for name in names if (self._path / name).exists()}

    def source(self, name: str) -> Path:
        """See RunFiles."""
        return self._path / name

    def read(self, name: str) -> bytes | None:
        """See RunFiles."""
        path = self._path / name
        return files.read(path) if path.exists() else None

    def create(self, name: str, content: bytes) -> bool:
        """See RunFiles."""
        self._path.mkdir(parents=True, exist_ok=True)
        files.sweep(self._path)  # what killed processes were writing
        with files.locked(self._path / BEGIN):
            if (self._path / name).exists():
                return False
            files.write_file(self._path / name, content)
            return True

    def write(self, name: str, content: bytes) -> bool:
        """See RunFiles. Replaces a damaged part."""
        files.write_file(self._path / name, content)
        return True

    @contextmanager
    def claimed(self, part: int, *, wait: bool) -> Iterator[bool]:
        """See RunFiles. The lock ends with the process."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path / LOCK, flags, 0o666)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, part)
            except (BlockingIOError, PermissionError):
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    @contextmanager
    def backbones(self) -> Iterator[Repository]:
        """See RunFiles."""
        yield Repository(self._path)

    new_backbones = backbones


class RunBucket:
    """Implements RunFiles for a prefix of a bucket. It has no locks, so that no process waits.

    Two processes may embed the same part at the same time; one of them stores it.
    """

    is_atomic = True

    def __init__(self, url: str) -> None:
        """``url`` is that of the prefix. Raises InvalidInput without obstore."""
        self.location: Location = url.rstrip("/")
        root, self._prefix = bucket_files.split(self.location, field="embeddings")
        self._objects = bucket_files.open_bucket(root, field="embeddings")

    def __str__(self) -> str:
        return printable(str(self.location))

    def stored(self, names: Collection[str]) -> set[str]:
        """See RunFiles."""
        with _plain_errors():
            if len(names) == 1:  # not a listing of thousands
                return {name for name in names if self._objects.head(self._name(name)) is not None}
            return {*names}.intersection(self._names(""))

    def source(self, name: str) -> io.BytesIO:
        """See RunFiles."""
        content = self.read(name)
        if content is None:
            raise Corrupt(f"{printable(f'{self.location}/{name}')} is missing")
        return io.BytesIO(content)

    def read(self, name: str) -> bytes | None:
        """See RunFiles."""
        from topwork.storage.bucket.objects import Missing

        with _plain_errors():
            try:
                return bucket_files.read_object(self._objects, self._name(name))
            except Missing:
                return None

    def create(self, name: str, content: bytes) -> bool:
        """See RunFiles."""
        with _plain_errors():
            return self._objects.create(self._name(name), content)

    write = create

    @contextmanager
    def claimed(self, part: int, *, wait: bool) -> Iterator[bool]:  # noqa: ARG002  # no locks
        """See RunFiles."""
        yield True

    @contextmanager
    def backbones(self) -> Iterator[Repository]:
        """See RunFiles. They are downloaded to a temporary directory."""
        with tempfile.TemporaryDirectory() as directory:
            for name in self._names("backbones"):
                if _BACKBONE.fullmatch(name) and (content := self.read(name)) is not None:
                    path = Path(directory, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            yield Repository(Path(directory))

    @contextmanager
    def new_backbones(self) -> Iterator[Repository]:
        """See RunFiles. They are uploaded at the end of the block."""
        with tempfile.TemporaryDirectory() as directory:
            yield Repository(Path(directory))
            names = [str(path.relative_to(directory)) for path in Path(directory).glob("*/*/*")]
            for name in sorted(names, reverse=True):  # the graph before its description
                if _BACKBONE.fullmatch(name) and not self.stored([name]):
                    self.create(name, Path(directory, name).read_bytes())

    def _name(self, name: str) -> str:
        return f"{self._prefix}/{name}".lstrip("/")

    def _names(self, folder: str) -> set[str]:
        """Return the names of all files below a folder."""
        with _plain_errors():
            listed = self._objects.listed(self._name(folder).rstrip("/"))
            return {facts.name.removeprefix(self._prefix).lstrip("/") for facts in listed}


def _plain_errors() -> AbstractContextManager[None]:
    return bucket_files.plain_errors("embeddings")
