"""Blobs in an object store, whose times are those of the objects, or of markers that name them.

An object store cannot set the time of an object, so a refresh writes one marker with the keys of
all blobs. Markers are deleted after a day: what a writer refreshed is referred to by then.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.object_facts import Facts, newest, total
from topwork.bundle.storage.objects import BULK, Missing, Objects
from topwork.bundle.storage.storage import Entry

MARKER_AGE = 86400.0
"""Age in seconds from which markers are deleted; lowering it may delete blobs of slow writers."""


class Blobs:
    """The blobs and the markers in ``refreshed/``. Callers hold the lock of the root."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._read: dict[str, tuple[str, ...]] = {}

    def put(self, key: str, content: bytes) -> None:
        """Store a blob; a large one only if it is not stored."""
        name = names.object_name(key)
        if len(content) >= BULK:
            self._mark([key])
            facts = self._objects.head(name)
            # An encrypted object or one in parts has another tag: it is replaced.
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if facts is not None and facts.tag.startswith(f'"{md5}"'):
                return
        self._objects.put(name, content)

    def refresh(self, keys: Collection[str]) -> set[str]:
        """Write a marker for blobs, before looking for them; return those that do not exist."""
        if not keys:
            return set()
        self._mark(keys)
        facts = self._objects.heads({names.proof(key) for key in keys})
        return {key for key in keys if facts[names.proof(key)] is None}

    def newest(self, key: str) -> int | None:
        """Return the newest time in ns of a blob and its markers; None if it is not stored."""
        parent, _, blob = key.rpartition("/")
        if names.is_directory(key):
            listed = [*self._objects.listed(key)]
        else:
            facts = self._objects.head(key)
            listed = [facts] if facts is not None else []
        if names.proof(key) not in {facts.name for facts in listed}:
            return None
        return max(newest(listed), self._marked(parent).get(blob, 0))

    def entries(self, directory: str) -> dict[str, Entry]:
        """Return the blobs directly in a directory by name, with their newest times."""
        found: dict[str, list[Facts]] = {}
        for facts in self._objects.listed(directory):
            name = facts.name.removeprefix(f"{directory}/").partition("/")[0]
            found.setdefault(name, []).append(facts)
        marked = self._marked(directory)
        entries = {}
        for name, files in found.items():
            key = f"{directory}/{name}"
            stored = {facts.name for facts in files}
            if names.commit(key) is None or not stored.isdisjoint({key, names.proof(key)}):
                entries[name] = total(files, time_ns=max(newest(files), marked.get(name, 0)))
        return entries

    def _mark(self, keys: Collection[str]) -> None:
        """Write a marker for keys."""
        content = json.dumps(sorted(keys)).encode()
        self._objects.put(f"{names.REFRESHED}/{uuid.uuid4().hex}", content)

    def _marked(self, directory: str) -> dict[str, int]:
        """Return the times in ns of the blobs directly in a directory that markers name.

        The number of markers is added in ns: stores round times to seconds, and a refresh must
        change the time.
        """
        markers = {facts.name: facts for facts in self._objects.listed(names.REFRESHED)}
        self._read = {name: keys for name, keys in self._read.items() if name in markers}
        unread = [name for name in markers if name not in self._read]
        self._read.update(zip(unread, self._objects.parallel(self._keys, unread), strict=True))
        times: dict[str, int] = {}
        counts: dict[str, int] = {}
        for name, facts in markers.items():
            for key in self._read[name]:
                parent, _, blob = key.rpartition("/")
                if parent == directory:
                    times[blob] = max(times.get(blob, 0), facts.time_ns)
                    counts[blob] = counts.get(blob, 0) + 1
        return {blob: time + counts[blob] for blob, time in times.items()}

    def _keys(self, marker: str) -> tuple[str, ...]:
        """Return the keys in a marker; none if it is gone, or a foreign file."""
        try:
            got = self._objects.get(marker)
            keys = json.loads(got[0]) if got is not None else []
        except (Missing, ValueError, RecursionError):
            return ()
        return tuple(str(key) for key in keys) if isinstance(keys, list) else ()
