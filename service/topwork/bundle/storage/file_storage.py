"""Storage on a file system, local or shared by the hosts, whose ``flock`` works."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Collection, Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from topwork.bundle import files
from topwork.bundle.names import is_model
from topwork.bundle.storage.storage import ABANDONED_AFTER, HIDDEN, Entry, Space, Tag
from topwork.errors import Corrupt


class FileStorage:
    """Files of a repository below the directory ``root``; see ``Storage``.

    Writers are safe against each other by file locks, so tags are not compared.
    """

    poll_seconds = 0.0

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def at(self, key: str) -> str:
        """Return the path of a file or directory, for people."""
        return str(self.path(key))

    def path(self, key: str) -> Path:
        """Return the path of a file or directory."""
        return self.root / key

    def read(self, key: str) -> bytes:
        """Return a file's bytes. Raises Corrupt if it is missing or no regular file."""
        return files.read(self.path(key))

    def read_tagged(self, key: str) -> tuple[bytes, Tag]:
        """Return a file's bytes with its tag. Raises Corrupt as ``read``."""
        with files.open_file(self.path(key)) as file:
            status = os.fstat(file.fileno())
            return file.read(), Tag(f"{status.st_ino}-{status.st_mtime_ns}")

    def open(self, key: str) -> io.BufferedIOBase:
        """Open a file for reading and seeking. Raises Corrupt as ``read``."""
        return files.open_file(self.path(key))

    def read_verified(self, key: str, digest: str) -> bytes:
        """Return a file's bytes. Raises Corrupt if missing, or its sha256 is not ``digest``."""
        return files.read_verified(self.path(key), digest)

    def local(self, key: str, digest: str, *, again: bool = False) -> Path:  # noqa: ARG002  # see Storage
        """Return the path of the file."""
        return self.path(key)

    def entry(self, key: str) -> Entry | None:
        """Return facts about a file or a directory; None if it does not exist."""
        path = self.path(key)
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(time_ns=status.st_mtime_ns, size=files.size(path))

    def exists(self, key: str) -> bool:
        """Return True if there is a file or a directory ``key``."""
        return self.path(key).exists()

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Return the bytes of each of these files that exists."""
        found = {}
        for key in keys:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[key] = self.path(key).lstat().st_size
        return found

    def files(self, directory: str) -> dict[str, Entry]:
        """Return the files directly in a directory by name; none if it does not exist."""
        found = {}
        for entry in self._scan(directory):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                if not entry.is_dir():
                    status = entry.stat(follow_symlinks=False)
                    found[entry.name] = Entry(time_ns=status.st_mtime_ns, size=status.st_size)
        return found

    def directories(self, directory: str) -> list[str]:
        """Return the sorted names of the directories in a directory, also of hidden ones."""
        return sorted(entry.name for entry in self._scan(directory, hidden=True) if entry.is_dir())

    def write(self, key: str, content: bytes, *, expected: Tag | None = None) -> None:  # noqa: ARG002  # see Storage
        """Write or replace a file; its writers hold a lock."""
        files.write_file(self.path(key), content)

    def write_at(self, key: str, content: bytes, time_ns: int) -> None:
        """Write or replace a file with a modification time of its own."""
        with files.new_file(self.path(key)) as file:
            file.write(content)
            file.flush()
            os.utime(file.fileno(), ns=(time_ns, time_ns))

    def create(self, directory: str, files_by_name: Mapping[str, bytes]) -> None:
        """Create a directory with files by one rename. Raises FileExistsError."""
        with files.new_directory(self.path(directory)) as temporary:
            for name, content in files_by_name.items():
                path = temporary / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)

    def make_directory(self, directory: str) -> None:
        """Create a directory unless it exists."""
        self.path(directory).mkdir(parents=True, exist_ok=True)

    def delete(self, key: str) -> bool:
        """Delete a file or a directory; return False if it does not exist."""
        path = self.path(key)
        if not path.is_dir():
            return files.delete(path)
        try:
            aside = files.move_aside(path)
        except FileNotFoundError:
            return False
        files.sync_directory(path.parent)
        return files.delete(aside)

    def hide(self, directory: str) -> None:
        """Rename ``parent/name`` to ``parent/HIDDENname``, with the current time."""
        path = self.path(directory)
        files.touch(path)
        path.rename(path.with_name(HIDDEN + path.name))
        files.sync_directory(path.parent)

    def unhide(self, directory: str) -> None:
        """Rename ``parent/HIDDENname`` to ``parent/name``."""
        path = self.path(directory)
        path.with_name(HIDDEN + path.name).rename(path)
        files.sync_directory(path.parent)

    def put_blob(self, key: str, content: bytes) -> None:
        """Store a blob, or refresh it if it is stored, and repair it if it is damaged."""
        path = self.path(key)
        if not self.refresh([key]):
            with contextlib.suppress(Corrupt, OSError):
                if files.read(path) == content:
                    return
        files.write_file(path, content, under=self._deletion_blocked)

    def refresh(self, keys: Collection[str]) -> set[str]:
        """Set the times of blobs to now; return those that do not exist."""
        if not any(map(self.exists, keys)):  # such as in a repository that is not made yet
            return {*keys}
        with self._deletion_blocked():
            return self._touch(keys)

    @contextlib.contextmanager
    def holding(self, keys: Collection[str]) -> Iterator[set[str]]:
        """Refresh blobs, and block deletion while the block runs; yield those that are missing."""
        with self._deletion_blocked():
            missing = self._touch(keys)
            # The writer that stored them may have died before its own fsync.
            for directory in {self.path(key).parent for key in {*keys} - missing}:
                files.sync_directory(directory)
            yield missing

    def refreshed(self, directory: str) -> dict[str, Entry]:
        """Return the blobs directly in a directory by name."""
        found = {}
        for item in self._scan(directory):
            entry = self.entry(f"{directory}/{item.name}")
            if entry is not None:
                found[item.name] = entry
        return found

    def delete_blob(self, key: str, time_ns: int) -> bool:
        """Delete a blob, unless its time is no longer ``time_ns``; return True if it did."""
        path = self.path(key)
        with self.locked(""):
            try:
                if path.lstat().st_mtime_ns != time_ns:
                    return False
            except FileNotFoundError:
                return False
            aside = files.move_aside(path)
        files.delete(aside)
        return True

    @contextlib.contextmanager
    def locked(self, directory: str, *, shared: bool = False) -> Iterator[None]:
        """Hold the file ``.lock`` of a directory; other processes and threads wait."""
        with files.locked(self.path(directory) / ".lock", shared=shared):
            yield

    def now(self) -> float:
        """Return the host's time in seconds since 1970."""
        return time.time()

    def stamps(
        self, names: Sequence[str], known: Container[str], *, only: str | None = None
    ) -> dict[str, Hashable | None]:
        """Return inode and modification time in ns of a document of each model.

        One system call per name and model: 2 ms for 1,000 models.
        """
        stamps: dict[str, Hashable | None] = {}
        directory = os.open(self.path("models"), os.O_RDONLY)
        try:
            # Path lists no open directory.
            for model in os.listdir(directory) if only is None else [only]:  # noqa: PTH208
                if model not in known and not is_model(model):
                    continue
                for name in names:
                    try:
                        status = os.stat(f"{model}/{name}", dir_fd=directory)
                    except (FileNotFoundError, NotADirectoryError):
                        continue
                    except OSError:
                        stamps[model] = None
                    else:
                        stamps[model] = (status.st_ino, status.st_mtime_ns)
                    break
        finally:
            os.close(directory)
        return stamps

    def space(self) -> Space:
        """Return the free space of the file system."""
        disk = os.statvfs(self.root)
        return Space(
            free_bytes=disk.f_bavail * disk.f_frsize,
            # File systems without a fixed number of inodes, such as Btrfs, report a total of 0.
            free_files=disk.f_favail if disk.f_files else None,
        )

    def abandoned(self, *, age: float = ABANDONED_AFTER) -> dict[str, Entry]:
        """Return temporary names that crashed writers left more than ``age`` seconds ago."""
        found = {}
        for directory in self._written():
            for path in files.abandoned(directory, age=age):
                key = path.relative_to(self.root).as_posix()
                if (entry := self.entry(key)) is not None:  # otherwise deleted meanwhile
                    found[key] = entry
        return found

    def delete_abandoned(self, key: str, *, age: float = ABANDONED_AFTER) -> bool:
        """Delete a temporary name; return False if it is gone, or its writer is alive."""
        return files.delete_abandoned(self.path(key), age=age)

    def _written(self) -> list[Path]:
        """Return all directories in which writers make temporary names."""
        models = [path for path in self.path("models").glob("*") if path.is_dir()]
        names = ("checkpoints", "models", "backbones", "exemplars", "images")
        below = [
            path
            for model in models
            for pattern in ("review", "evaluations/**/")
            for path in model.glob(pattern)
            if path.is_dir()
        ]
        return [self.root, *map(self.path, names), *models, *below]

    def _scan(self, directory: str, *, hidden: bool = False) -> list[os.DirEntry[str]]:
        """Return the entries of a directory whose names begin with no dot, or are ``hidden``."""
        absent = (FileNotFoundError, NotADirectoryError)
        with contextlib.suppress(*absent), os.scandir(self.path(directory)) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".") or (hidden and entry.name.startswith(HIDDEN))
            ]
        return []

    @contextlib.contextmanager
    def _deletion_blocked(self) -> Iterator[None]:
        """Hold the root's lock shared, so that no blob is deleted while the block runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self.locked("", shared=True):
            yield

    def _touch(self, keys: Collection[str]) -> set[str]:
        """Set modification times to now; return the keys that do not exist."""
        missing = set()
        for key in keys:
            try:
                files.touch(self.path(key))
            except (FileNotFoundError, NotADirectoryError):
                missing.add(key)
        return missing
