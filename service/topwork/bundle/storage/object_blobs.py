"""Times of blobs in an object store: an object's own time, or that of a marker which names it.

An object store cannot set the time of an object, so a refresh writes one marker with the keys of
all blobs. Markers are deleted after a day: what a writer refreshed is referred to by then.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.objects import Facts, Missing, Objects
from topwork.bundle.storage.storage import Entry

MARKER_AGE = 86400.0
"""Age in seconds from which markers are deleted; lowering it may delete blobs of slow writers."""


class BlobTimes:
    """The markers in ``refreshed/``."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._read: dict[str, tuple[str, ...]] = {}

    def mark(self, keys: Collection[str]) -> None:
        """Write a marker for keys."""
        content = json.dumps(sorted(keys)).encode()
        self._objects.put(f"{names.REFRESHED}/{uuid.uuid4().hex}", content)

    def newest(self, directory: str) -> dict[str, int]:
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

    def blobs(self, directory: str) -> dict[str, Entry]:
        """Return the blobs directly in a directory by name, with their newest times."""
        found: dict[str, list[Facts]] = {}
        for facts in self._objects.listed(directory):
            name = facts.name.removeprefix(f"{directory}/").partition("/")[0]
            found.setdefault(name, []).append(facts)
        marked = self.newest(directory)
        entries = {}
        for name, files in found.items():
            commit = names.commit(f"{directory}/{name}")
            inner = {facts.name.rpartition("/")[2] for facts in files}
            if (
                commit is not None
                and files[0].name != f"{directory}/{name}"
                and commit not in inner
            ):
                continue
            time_ns = max(facts.time_ns for facts in files)
            entries[name] = Entry(
                time_ns=max(time_ns, marked.get(name, 0)), size=sum(facts.size for facts in files)
            )
        return entries

    def _keys(self, marker: str) -> tuple[str, ...]:
        """Return the keys in a marker; none if it is gone, or a foreign file."""
        try:
            got = self._objects.get(marker)
            keys = json.loads(got[0]) if got is not None else []
        except (Missing, ValueError, RecursionError):
            return ()
        return tuple(str(key) for key in keys) if isinstance(keys, list) else ()
