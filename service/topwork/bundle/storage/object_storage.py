"""Storage in an object store, such as S3: conditional writes, and a cache on the local disk.

``object_names`` has the layout. A directory exists when its commit does: manifest.json of a
revision, set.json of an evaluation set, backbone.json of a backbone, an object of its own for a
model. Until then, and if its writer crashed, ``exists``, ``entry`` and ``directories`` do not see
it. ``create`` raises FileExistsError for such a name until the leftover is ``TAKE_OVER_AFTER`` old,
so a caller that numbers directories must try a higher number next.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import time
from collections.abc import Collection, Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.cache import Cache
from topwork.bundle.storage.locks import Locks
from topwork.bundle.storage.object_blobs import MARKER_AGE, BlobTimes
from topwork.bundle.storage.objects import BULK, Conflict, Facts, Missing, Objects
from topwork.bundle.storage.pointers import PointerList, Pointers
from topwork.bundle.storage.storage import ABANDONED_AFTER, ABSENT, HIDDEN, Entry, Space, Tag
from topwork.errors import Corrupt, Stale

CREATE_SECONDS = 300.0
"""Raising it lets slower writers create a directory; leftovers block its name longer."""

TAKE_OVER_AFTER = 3 * CREATE_SECONDS
"""Age in seconds from which another writer may finish a directory: the first gave up long ago."""

_CLOCK_SECONDS = 300.0
"""Seconds for which the difference of the clocks is reused."""

_ROUNDING = 1.5
"""Difference in seconds that may come from LastModified, which is rounded down to a second."""


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
        self._cache = cache
        self._locks = locks
        self._url = url.rstrip("/")
        self._identity = identity or self._url
        self._pointers = PointerList(objects)
        self._blobs = BlobTimes(objects)
        self._clock: tuple[float, float] | None = None

    def __str__(self) -> str:
        """Return the URL."""
        return self._url

    def at(self, key: str) -> str:
        """Return the URL of a file or directory."""
        return f"{self._url}/{names.object_name(key)}".rstrip("/")

    # Reading

    def read(self, key: str) -> bytes:
        """Return a file's bytes, unchanged ones from the cache. Raises Corrupt."""
        name = names.object_name(key)
        if (tag := self._pointers.take_fresh(name)) is not None:
            cached = self._cache.document(f"{self._identity}/{name}")
            if cached is not None and cached[0] == tag:
                return cached[1]
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, Tag]:
        """Return a file's bytes with its ETag. Raises Corrupt."""
        name = self._name(key)
        url = f"{self._identity}/{name}"
        cached = self._cache.document(url)
        try:
            got = self._objects.get(name, unless=cached[0] if cached else ABSENT)
        except Missing:
            raise _missing(key) from None
        if got is None:
            assert cached is not None, "the store answered 304 without a condition"
            return cached[1], cached[0]
        content, facts = got
        self._cache.put_document(url, facts.tag, content)
        return content, facts.tag

    def open(self, key: str) -> io.BufferedIOBase:
        """Return a file's bytes for reading and seeking. Raises Corrupt."""
        return io.BytesIO(self.read(key))

    def read_verified(self, key: str, digest: str) -> bytes:
        """Return a file's bytes from the cache or the store. Raises Corrupt."""
        content = self._cache.blob(digest)
        if content is None:
            content = self._fetch(key, digest)
            self._cache.put_blob(digest, content)
        return content

    def local(self, key: str, digest: str, *, again: bool = False) -> Path:
        """Return the cached file with the bytes of ``key``. Raises Corrupt."""
        path = None if again else self._cache.path(digest)
        if path is None:
            content = self._fetch(key, digest)
            path = self._cache.put_blob(digest, content) or self._cache.temporary(content)
        return path

    def entry(self, key: str) -> Entry | None:
        """Return facts about a file or a directory; None if it does not exist."""
        found = names.split_model(key)
        if found is not None and not found[2]:
            return self._model_entry(found[0], hidden=found[1])
        if key.endswith(names.TIMED):
            return self._timed(names.object_name(key))
        name = names.object_name(key)
        if not names.is_directory(name):
            facts = self._objects.head(name)
            if facts is not None or names.is_file(name):
                return None if facts is None else _entry(facts)
        listed = [*self._objects.listed(name)]
        commit = names.commit(name)
        if commit is not None:
            own = next((facts for facts in listed if facts.name == f"{name}/{commit}"), None)
            return None if own is None else Entry(time_ns=own.time_ns, size=_size(listed))
        return Entry(time_ns=_newest(listed), size=_size(listed)) if listed else None

    def exists(self, key: str) -> bool:
        """Return True if there is a file or a directory ``key``."""
        found = names.split_model(key)
        if found is not None and found[2] in {"", *names.DOCUMENTS}:
            model, hidden, inner = found
            pointers = self._pointers.of(model)
            there = pointers.hidden is not None if hidden else pointers.exists
            return there and (not inner or inner in pointers.found)
        name = names.object_name(key)
        if (commit := names.commit(name)) is not None and names.is_directory(name):
            return self._objects.head(f"{name}/{commit}") is not None
        if names.is_directory(name) or key.endswith(names.TIMED):
            return self._objects.first(name) is not None
        return self.entry(key) is not None

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Return the bytes of each of these files that exists."""
        heads = self._objects.heads([names.object_name(key) for key in keys])
        found = zip(keys, heads.values(), strict=True)
        return {key: facts.size for key, facts in found if facts is not None}

    def files(self, directory: str) -> dict[str, Entry]:
        """Return the files directly in a directory by name."""
        name = names.object_name(directory)
        found: dict[str, Entry] = {}
        inner, directories = self._objects.children(name)
        found = {own: _entry(facts) for own, facts in inner.items() if not own.startswith(".")}
        if any(own.endswith(names.TIMED) for own in directories):
            for facts in self._objects.listed(name):
                own, _, time_ns = facts.name.removeprefix(f"{name}/").partition("/")
                if own.endswith(names.TIMED) and time_ns.isdecimal():
                    found[own] = Entry(time_ns=int(time_ns), size=facts.size)
        model = names.split_model(directory)
        if model is not None and not model[2]:
            pointers = self._pointers.of(model[0])
            if not (pointers.hidden if model[1] else pointers.exists):
                return {}
            for own in names.DOCUMENTS:
                if own in pointers.found:
                    found[own] = _entry(pointers.found[own])
        return found

    def directories(self, directory: str) -> list[str]:
        """Return the sorted names of the directories in a directory."""
        if directory == names.MODELS:
            everything = self._pointers.all()
            shown = [model for model, each in everything.items() if each.exists]
            hidden = [f"{HIDDEN}{model}" for model, each in everything.items() if each.hidden]
            return sorted(shown + hidden)
        model = names.split_model(directory)
        if model is not None and not self.exists(f"{names.MODELS}/{directory.split('/')[1]}"):
            return []
        name = names.object_name(directory)
        found = [own for own in self._objects.children(name)[1] if not own.endswith(names.TIMED)]
        if not directory:
            return [
                own for own in found if own not in {names.POINTERS, names.REFRESHED, names.PROBES}
            ]
        commits = {own: names.commit(f"{name}/{own}") for own in found}
        if any(commits.values()):
            committed = set()
            # The directories of revisions come before all others, which may be large.
            last = max(own for own, commit in commits.items() if commit)
            for facts in self._objects.listed(name):
                own, _, inner = facts.name.removeprefix(f"{name}/").partition("/")
                if own > last:
                    break
                if inner and inner == commits.get(own):
                    committed.add(own)
            found = [own for own in found if commits[own] is None or own in committed]
        return found

    # Writing

    def write(self, key: str, content: bytes, *, expected: Tag | None = None) -> None:
        """Write or replace a file, with ``expected`` by a conditional request. Raises Stale."""
        name = names.object_name(key)
        try:
            self._objects.put(name, content, expected=expected)
        except Conflict:
            raise Stale(f"{key} was changed by another writer") from None
        self._announce(name)

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
        began = time.monotonic()
        contents = {names.object_name(f"{directory}/{own}"): files[own] for own in files}
        commit = self._commit_name(directory)
        if commit not in contents:
            contents[commit] = self._objects.nonce()
        if self.exists(directory) or self._others(directory) - contents.keys():
            raise _exists(directory)
        for name in sorted(contents, key=lambda name: name == commit):
            if time.monotonic() - began > CREATE_SECONDS:
                raise OSError(errno.ETIMEDOUT, f"{directory} could not be written in time")
            try:
                self._objects.put(name, contents[name], expected=ABSENT)
            except Conflict:
                if name == commit:
                    raise _exists(directory) from None
                self._take_over(directory, name, contents[name])
        self._announce(commit)

    def make_directory(self, directory: str) -> None:
        """Let the directory of a model exist; other directories need nothing."""
        found = names.split_model(directory)
        if found is None or found[2]:
            return
        pointers = self._pointers.of(found[0])
        if pointers.hidden is not None:
            raise FileExistsError(errno.EEXIST, f"{directory} is hidden")
        if not pointers.exists:
            if self._others(directory):
                raise _exists(directory)
            self._objects.put(self._commit_name(directory), self._objects.nonce())

    def delete(self, key: str) -> bool:
        """Delete a file or a directory; return False if it does not exist."""
        found = names.split_model(key)
        if found is not None and not found[2]:
            return self._delete_model(found[0], hidden=found[1])
        name = names.object_name(key)
        if not names.is_directory(name) and not key.endswith(names.TIMED):
            there = self._objects.head(name) is not None
            if there:
                self._objects.delete([name])
                self._announce(name)
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
        model = _model_of(directory)
        if not self._pointers.of(model).exists:
            raise FileNotFoundError(errno.ENOENT, f"{directory} does not exist")
        name = f"{names.pointers(model)}/{names.DELETED}"
        self._objects.put(name, b"")
        self._announce(name)

    def unhide(self, directory: str) -> None:
        """Show the directory of a model again. Raises FileNotFoundError."""
        model = _model_of(directory)
        if self._pointers.of(model).hidden is None:
            raise FileNotFoundError(errno.ENOENT, f"{directory} is not hidden")
        name = f"{names.pointers(model)}/{names.DELETED}"
        self._objects.delete([name])
        self._announce(name)

    # Blobs

    def put_blob(self, key: str, content: bytes) -> None:
        """Store a blob under the shared lock of the root; a large one only if it is not stored."""
        with self.locked("", shared=True):
            name = names.object_name(key)
            if len(content) >= BULK:
                self._blobs.mark([key])
                facts = self._objects.head(name)
                # An encrypted object or one in parts has another tag: it is replaced.
                md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
                if facts is not None and facts.tag.startswith(f'"{md5}"'):
                    return
            self._objects.put(name, content)

    def refresh(self, keys: Collection[str]) -> set[str]:
        """Set the times of blobs to now by a marker; return those that do not exist."""
        with self.locked("", shared=True):
            return self._mark(keys)

    @contextlib.contextmanager
    def holding(self, keys: Collection[str]) -> Iterator[set[str]]:
        """Refresh blobs, and hold the shared lock of the root while the block runs."""
        with self.locked("", shared=True):
            yield self._mark(keys)

    def _mark(self, keys: Collection[str]) -> set[str]:
        """Write a marker for blobs, before looking for them; return those that do not exist."""
        if not keys:
            return set()
        self._blobs.mark(keys)
        facts = self._objects.heads({_proof(key) for key in keys})
        return {key for key in keys if facts[_proof(key)] is None}

    def refreshed(self, directory: str) -> dict[str, Entry]:
        """Return the blobs directly in a directory by name, with their newest times."""
        return self._blobs.blobs(directory)

    def delete_blob(self, key: str, time_ns: int) -> bool:
        """Delete a blob, unless its time is no longer ``time_ns``; return True if it did."""
        with self.locked(""):
            parent, _, blob = key.rpartition("/")
            entry = self.entry(key)
            if entry is None:
                return False
            newest = max(
                _newest([*self._objects.listed(key)]) if names.is_directory(key) else entry.time_ns,
                self._blobs.newest(parent).get(blob, 0),
            )
            return newest == time_ns and self.delete(key)

    # Locks and clock

    @contextlib.contextmanager
    def locked(self, directory: str, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock of a directory. Raises FileNotFoundError, OSError if it was lost."""
        found = names.split_model(directory)
        with contextlib.ExitStack() as stack:
            check = None
            if self._locks is not None:
                check = stack.enter_context(self._locks.locked(directory, shared=shared))
            self._pointers.forget_fresh(found[0] if found else None)
            if found is not None and not found[2] and not self.exists(directory):
                raise FileNotFoundError(errno.ENOENT, f"{directory} does not exist")
            yield
            if check is not None:
                check()

    def now(self) -> float:
        """Return the store's time in seconds since 1970; the host's if it is the same."""
        checked, offset = self._clock or (-_CLOCK_SECONDS, 0.0)
        if time.monotonic() - checked >= _CLOCK_SECONDS:
            before = time.time()
            facts = None
            with contextlib.suppress(PermissionError):  # a reader has the host's time
                self._objects.put(names.CLOCK, self._objects.nonce())
                facts = self._objects.head(names.CLOCK)
            if facts is not None:
                difference = facts.time_ns / 1e9 - before
                offset = difference + 0.5 if abs(difference) > _ROUNDING else 0.0
            self._clock = time.monotonic(), offset
        return time.time() + offset

    # Watching and maintenance

    def stamps(
        self, documents: Sequence[str], known: Container[str], *, only: str | None = None
    ) -> dict[str, Hashable | None]:
        """Return the ETag of the first of ``documents`` that each model has."""
        return self._pointers.stamps(documents, known, only=only)

    def space(self) -> Space | None:
        """Return None: without limit."""
        return None

    def abandoned(self, *, age: float = ABANDONED_AFTER) -> list[str]:
        """Return old directories without a commit, old probes, and markers older than a day."""
        now = self.now()
        found = [
            facts.name
            for prefix in (names.REFRESHED, names.PROBES)
            for facts in self._objects.listed(prefix)
            if facts.time_ns / 1e9 < now - self._age(facts.name, age)
        ]
        pointers = self._pointers.all()
        for directory, objects in self._created().items():
            model = names.split_model(directory)
            if model is not None and not model[2]:
                there = names.MADE in pointers.get(model[0], Pointers()).found
            else:
                there = self._commit_name(directory) in {facts.name for facts in objects}
            if not there and _newest(objects) / 1e9 < now - age:
                found.append(directory)
        return sorted(found)

    def delete_abandoned(self, key: str, *, age: float = ABANDONED_AFTER) -> bool:
        """Delete what ``abandoned`` returned, under the lock of its writers."""
        with contextlib.ExitStack() as stack:
            if self._locks is not None and not self._is_own(key):
                stack.enter_context(
                    self._locks.locked(key.rpartition("/")[0].removesuffix("/evaluations"))
                )
            if self._is_own(key):
                own = self._objects.head(key)
                listed = [own] if own is not None else []
            else:
                listed = self._all_of(key)
                if self._objects.head(self._commit_name(key)) is not None:
                    return False
            if not listed or _newest(listed) / 1e9 >= self.now() - self._age(key, age):
                return False
            self._objects.delete([facts.name for facts in listed])
        return True

    # Helpers

    def _name(self, key: str) -> str:
        """Return the name of the object with the content of a file."""
        name = names.object_name(key)
        if key.endswith(names.TIMED):
            facts = self._objects.first(name)
            return facts.name if facts is not None else name
        return name

    def _fetch(self, key: str, digest: str) -> bytes:
        try:
            got = self._objects.get(self._name(key))
        except Missing:
            raise _missing(key) from None
        assert got is not None, "the store answered 304 without a condition"
        actual = hashlib.sha256(got[0]).hexdigest()
        if actual != digest:
            raise Corrupt(f"{_short(key)} has sha256 {actual}, not {digest}: it was changed")
        return got[0]

    def _model_entry(self, model: str, *, hidden: bool) -> Entry | None:
        pointers = self._pointers.of(model)
        if not (pointers.hidden if hidden else pointers.exists):
            return None
        listed = [*self._objects.listed(f"{names.MODELS}/{model}"), *pointers.found.values()]
        marker = pointers.hidden
        return Entry(
            time_ns=marker.time_ns if marker is not None else _newest(listed), size=_size(listed)
        )

    def _timed(self, name: str) -> Entry | None:
        found = [
            Entry(time_ns=int(time_ns), size=facts.size)
            for facts in self._objects.listed(name)
            if (time_ns := facts.name.removeprefix(f"{name}/")).isdecimal()
        ]
        return max(found, key=lambda entry: entry.time_ns, default=None)

    def _announce(self, name: str) -> None:
        if names.is_pointer(name):
            self._pointers.forget_fresh()
            self._pointers.announce()

    def _commit_name(self, directory: str) -> str:
        """Return the object with which a directory that ``create`` makes exists."""
        found = names.split_model(directory)
        if found is not None and not found[2]:
            return f"{names.pointers(found[0])}/{names.MADE}"
        commit = names.commit(names.object_name(directory))
        assert commit is not None, f"{directory} is no directory that create makes"
        return names.object_name(f"{directory}/{commit}")

    def _all_of(self, directory: str) -> list[Facts]:
        """Return all objects of a directory, pointers included."""
        listed = [*self._objects.listed(names.object_name(directory))]
        found = names.split_model(directory)
        if found is not None and not found[2]:
            listed += self._pointers.of(found[0]).found.values()
        return listed

    def _others(self, directory: str) -> set[str]:
        return {facts.name for facts in self._all_of(directory)}

    @staticmethod
    def _is_own(key: str) -> bool:
        """Return True if a key of ``abandoned`` is a marker or a probe."""
        return key.partition("/")[0] in {names.REFRESHED, names.PROBES}

    @staticmethod
    def _age(key: str, age: float) -> float:
        return max(age, MARKER_AGE) if key.startswith(names.REFRESHED) else age

    def _take_over(self, directory: str, name: str, content: bytes) -> None:
        """Replace a file that a crashed writer left. Raises FileExistsError if it may be alive."""
        facts = self._objects.head(name)
        committed = self.exists(directory)
        old = facts is not None and self.now() - facts.time_ns / 1e9 > TAKE_OVER_AFTER
        if facts is None or committed or not old:
            raise _exists(directory)
        try:
            self._objects.put(name, content, expected=facts.tag)
        except Conflict:
            raise _exists(directory) from None

    def _delete_model(self, model: str, *, hidden: bool) -> bool:
        pointers = self._pointers.of(model)
        if not (pointers.hidden if hidden else pointers.exists):
            return False
        prefix = names.pointers(model)
        marker = f"{prefix}/{names.DELETED}"
        if not hidden:
            self._objects.put(marker, b"")
        for part in (f"{names.MODELS}/{model}", prefix):
            listed = [facts.name for facts in self._objects.listed(part) if facts.name != marker]
            self._objects.delete(listed)
        self._objects.delete([marker])
        self._pointers.announce()
        return True

    def _created(self) -> dict[str, list[Facts]]:
        """Return the objects of all directories that ``create`` makes, by directory."""
        found: dict[str, list[Facts]] = {}
        for top in ("backbones", names.MODELS):
            for facts in self._objects.listed(top):
                parts = facts.name.split("/")
                for count in range(2, min(len(parts), 5)):
                    directory = "/".join(parts[:count])
                    if names.commit(directory) is not None or (count == 2 and top == names.MODELS):
                        found.setdefault(directory, []).append(facts)
        for model, pointers in self._pointers.all().items():
            found.setdefault(f"{names.MODELS}/{model}", []).extend(pointers.found.values())
        return found


def _entry(facts: Facts) -> Entry:
    return Entry(time_ns=facts.time_ns, size=facts.size)


def _newest(listed: Collection[Facts]) -> int:
    return max((facts.time_ns for facts in listed), default=0)


def _size(listed: Collection[Facts]) -> int:
    return sum(facts.size for facts in listed)


def _proof(key: str) -> str:
    """Return the object that exists if a blob does."""
    name = names.object_name(key)
    commit = names.commit(name)
    return f"{name}/{commit}" if commit is not None and names.is_directory(name) else name


def _model_of(directory: str) -> str:
    found = names.split_model(directory)
    assert found is not None and not found[2], "only the directories of models are hidden"  # noqa: PT018
    return found[0]


def _lock_of(directory: str) -> str:
    """Return the lock that writers hold when they create a directory."""
    parent = directory.rpartition("/")[0].removesuffix("/evaluations")
    return "" if parent == "backbones" else parent


def _short(key: str) -> str:
    return "/".join(key.split("/")[-4:])


def _missing(key: str) -> Corrupt:
    return Corrupt(f"{_short(key)} is missing")


def _exists(directory: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, f"{directory} exists, or is being created")
