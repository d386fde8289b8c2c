"""Storage in an object store, such as S3: conditional writes, and a cache on the local disk.

``object_names`` has the layout, ``object_directories`` says when a directory exists. If its writer
crashed, ``exists``, ``entry`` and ``directories`` do not see it. ``create`` raises FileExistsError
for such a name until the leftover is ``TAKE_OVER_AFTER`` old, so a caller that numbers directories
must try a higher number next.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Collection, Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.cache import Cache
from topwork.bundle.storage.locks import Locks
from topwork.bundle.storage.object_blobs import Blobs
from topwork.bundle.storage.object_clock import Clock
from topwork.bundle.storage.object_directories import CommittedDirectories, is_own
from topwork.bundle.storage.object_listing import Listing
from topwork.bundle.storage.object_models import ModelDirectories
from topwork.bundle.storage.object_reading import CachedReading
from topwork.bundle.storage.objects import Conflict, Objects
from topwork.bundle.storage.pointers import PointerList
from topwork.bundle.storage.storage import ABANDONED_AFTER, Entry, Space, Tag
from topwork.errors import Stale


class ObjectStorage:
    """Files as objects below a prefix of a bucket. See ``Storage``.

    Without ``locks`` nothing waits: concurrent writers are told apart by conditional writes alone.
    """

    poll_seconds = 1.0

    def __init__(
        self,
        objects: Objects,
        *,
        cache: Cache,
        locks: Locks | None,
        url: str,
        identity: str | None = None,
    ) -> None:
        self._objects = objects
        self._locks = locks
        self._url = url.rstrip("/")
        self._pointers = PointerList(objects)
        self._reading = CachedReading(objects, cache, self._pointers, identity or self._url)
        self._models = ModelDirectories(objects, self._pointers)
        self._listing = Listing(objects, self._pointers, self._models)
        self._clock = Clock(objects)
        self._directories = CommittedDirectories(
            objects, self._pointers, self._models, self._listing, self._clock
        )
        self._blobs = Blobs(objects)

    def __str__(self) -> str:
        """Return the URL."""
        return self._url

    def at(self, key: str) -> str:
        """Return the URL of a file or directory."""
        return f"{self._url}/{names.object_name(key)}".rstrip("/")

    # Reading

    def read(self, key: str) -> bytes:
        """Return a file's bytes, unchanged ones from the cache. Raises Corrupt."""
        return self._reading.read(key)

    def read_tagged(self, key: str) -> tuple[bytes, Tag]:
        """Return a file's bytes with its ETag. Raises Corrupt."""
        return self._reading.read_tagged(key)

    def open(self, key: str) -> io.BufferedIOBase:
        """Return a file's bytes for reading and seeking. Raises Corrupt."""
        return io.BytesIO(self._reading.read(key))

    def read_verified(self, key: str, digest: str) -> bytes:
        """Return a file's bytes from the cache or the store. Raises Corrupt."""
        return self._reading.read_verified(key, digest)

    def local(self, key: str, digest: str, *, again: bool = False) -> Path:
        """Return the cached file with the bytes of ``key``. Raises Corrupt."""
        return self._reading.local(key, digest, again=again)

    def entry(self, key: str) -> Entry | None:
        """Return facts about a file or a directory; None if it does not exist."""
        return self._listing.entry(key)

    def exists(self, key: str) -> bool:
        """Return True if there is a file or a directory ``key``."""
        return self._listing.exists(key)

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Return the bytes of each of these files that exists."""
        return self._listing.sizes(keys)

    def files(self, directory: str) -> dict[str, Entry]:
        """Return the files directly in a directory by name."""
        return self._listing.files(directory)

    def directories(self, directory: str) -> list[str]:
        """Return the sorted names of the directories in a directory."""
        return self._listing.directories(directory)

    # Writing

    def write(self, key: str, content: bytes, *, expected: Tag | None = None) -> None:
        """Write or replace a file, with ``expected`` by a conditional request. Raises Stale."""
        name = names.object_name(key)
        try:
            self._objects.put(name, content, expected=expected)
        except Conflict:
            raise Stale(f"{key} was changed by another writer") from None
        self._pointers.announce(name)

    def write_at(self, key: str, content: bytes, time_ns: int) -> None:
        """Write a file, with this modification time if its key ends with ``TIMED``."""
        if not key.endswith(names.TIMED):
            self.write(key, content)
            return
        name = names.object_name(key)
        new = f"{name}/{time_ns}"
        self._objects.put(new, content)
        self._objects.delete(
            [facts.name for facts in self._objects.listed(name) if facts.name != new]
        )

    def create(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Create a directory with files, the commit last. Raises FileExistsError."""
        self._directories.create(directory, files)

    def make_directory(self, directory: str) -> None:
        """Let the directory of a model exist; other directories need nothing."""
        model = names.model_directory(directory)
        if model is not None:
            self._models.make(model.name)

    def delete(self, key: str) -> bool:
        """Delete a file or a directory; return False if it does not exist."""
        model = names.model_directory(key)
        if model is not None:
            return self._models.delete(model.name, hidden=model.hidden)
        name = names.object_name(key)
        if not names.is_directory(name) and not key.endswith(names.TIMED):
            there = self._objects.head(name) is not None
            if there:
                self._objects.delete([name])
                self._pointers.announce(name)
            if there or names.is_file(name):
                return there
        there = self.exists(key)
        commit = names.commit(name)
        if commit is not None:
            self._objects.delete([f"{name}/{commit}"])
        self._objects.delete([facts.name for facts in self._objects.listed(name)])
        return there

    def hide(self, directory: str) -> None:
        """Hide the directory of a model by a marker. Raises FileNotFoundError."""
        self._models.hide(_model_of(directory))

    def unhide(self, directory: str) -> None:
        """Show the directory of a model again. Raises FileNotFoundError."""
        self._models.unhide(_model_of(directory))

    # Blobs

    def put_blob(self, key: str, content: bytes) -> None:
        """Store a blob under the shared lock of the root; a large one only if it is not stored."""
        with self.locked("", shared=True):
            self._blobs.put(key, content)

    def refresh(self, keys: Collection[str]) -> set[str]:
        """Set the times of blobs to now by a marker; return those that do not exist."""
        with self.holding(keys) as missing:
            return missing

    @contextlib.contextmanager
    def holding(self, keys: Collection[str]) -> Iterator[set[str]]:
        """Refresh blobs, and hold the shared lock of the root while the block runs."""
        with self.locked("", shared=True):
            yield self._blobs.refresh(keys)

    def refreshed(self, directory: str) -> dict[str, Entry]:
        """Return the blobs directly in a directory by name, with their newest times."""
        return self._blobs.entries(directory)

    def delete_blob(self, key: str, time_ns: int) -> bool:
        """Delete a blob, unless its time is no longer ``time_ns``; return True if it did."""
        with self.locked(""):
            return self._blobs.newest(key) == time_ns and self.delete(key)

    # Locks and clock

    @contextlib.contextmanager
    def locked(self, directory: str, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock of a directory. Raises FileNotFoundError, OSError if it was lost."""
        found = names.split_model(directory)
        with contextlib.ExitStack() as stack:
            check = None
            if self._locks is not None:
                check = stack.enter_context(self._locks.locked(directory, shared=shared))
            self._pointers.forget_fresh(found.name if found else None)
            if found is not None and not found.inner and not self.exists(directory):
                raise FileNotFoundError(errno.ENOENT, f"{directory} does not exist")
            yield
            if check is not None:
                check()

    def now(self) -> float:
        """Return the store's time in seconds since 1970; the host's if it is the same."""
        return self._clock.now()

    # Watching and maintenance

    def stamps(
        self, documents: Sequence[str], known: Container[str], *, only: str | None = None
    ) -> dict[str, Hashable | None]:
        """Return the ETag of the first of ``documents`` that each model has."""
        return self._pointers.stamps(documents, known, only=only)

    def space(self) -> Space | None:
        """Return None: without limit."""
        return None

    def abandoned(self, *, age: float = ABANDONED_AFTER) -> dict[str, Entry]:
        """Return old directories without a commit, old probes, and markers older than a day."""
        return self._directories.abandoned(age)

    def delete_abandoned(self, key: str, *, age: float = ABANDONED_AFTER) -> bool:
        """Delete what ``abandoned`` returned, under the lock of its writers."""
        with contextlib.ExitStack() as stack:
            if self._locks is not None and not is_own(key):
                parent = key.rpartition("/")[0].removesuffix("/evaluations")
                stack.enter_context(self._locks.locked(parent))
            return self._directories.delete_abandoned(key, age)


def _model_of(directory: str) -> str:
    model = names.model_directory(directory)
    assert model is not None, "only the directories of models are hidden"
    return model.name
