"""Directories in an object store that a commit creates, and what crashed writers leave of them.

A directory exists when its commit does: manifest.json of a revision, set.json of an evaluation
set, backbone.json of a backbone, an object of its own for a model.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Mapping

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.object_blobs import MARKER_AGE
from topwork.bundle.storage.object_clock import Clock
from topwork.bundle.storage.object_facts import Facts, newest, total
from topwork.bundle.storage.object_listing import Listing
from topwork.bundle.storage.object_models import ModelDirectories, being_created
from topwork.bundle.storage.objects import Conflict, Objects
from topwork.bundle.storage.pointers import PointerList, Pointers
from topwork.bundle.storage.storage import ABSENT, Entry

CREATE_SECONDS = 300.0
"""Raising it lets slower writers create a directory; leftovers block its name longer."""

TAKE_OVER_AFTER = 3 * CREATE_SECONDS
"""Age in seconds from which another writer may finish a directory: the first gave up long ago."""


class CommittedDirectories:
    """Creates directories file by file, and deletes those whose commit was never written."""

    def __init__(
        self,
        objects: Objects,
        pointers: PointerList,
        models: ModelDirectories,
        listing: Listing,
        clock: Clock,
    ) -> None:
        self._objects = objects
        self._pointers = pointers
        self._models = models
        self._listing = listing
        self._clock = clock

    def create(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Create a directory with files, the commit last. Raises FileExistsError."""
        began = time.monotonic()
        contents = {names.object_name(f"{directory}/{own}"): files[own] for own in files}
        commit = _commit_name(directory)
        if commit not in contents:
            contents[commit] = self._objects.nonce()
        if self._listing.exists(directory) or self._others(directory, contents):
            raise being_created(directory)
        for name in sorted(contents, key=lambda name: name == commit):
            if time.monotonic() - began > CREATE_SECONDS:
                raise OSError(errno.ETIMEDOUT, f"{directory} could not be written in time")
            try:
                self._objects.put(name, contents[name], expected=ABSENT)
            except Conflict:
                if name == commit:
                    raise being_created(directory) from None
                self._take_over(directory, name, contents[name])
        self._pointers.announce(commit)

    def abandoned(self, age: float) -> dict[str, Entry]:
        """Return old directories without a commit, old probes, and markers older than a day."""
        now = self._clock.now()
        found = {
            facts.name: facts.entry
            for prefix in (names.REFRESHED, names.PROBES)
            for facts in self._objects.listed(prefix)
            if facts.time_ns / 1e9 < now - _least_age(facts.name, age)
        }
        pointers = self._pointers.all()
        for directory, objects in self._created().items():
            if not _may_be_leftover(objects):
                continue
            model = names.model_directory(directory)
            if model is not None:
                there = names.MADE in pointers.get(model.name, Pointers()).found
            else:
                there = _commit_name(directory) in {facts.name for facts in objects}
            if not there and newest(objects) / 1e9 < now - age:
                found[directory] = total(objects)
        return dict(sorted(found.items()))

    def delete_abandoned(self, key: str, age: float) -> bool:
        """Delete what ``abandoned`` returned, under the lock of its writers."""
        if is_own(key):
            own = self._objects.head(key)
            listed = [own] if own is not None else []
        else:
            listed = self._all_of(key)
            committed = self._objects.head(_commit_name(key)) is not None
            if committed or not _may_be_leftover(listed):
                return False
        if not listed or newest(listed) / 1e9 >= self._clock.now() - _least_age(key, age):
            return False
        self._objects.delete([facts.name for facts in listed])
        return True

    def _take_over(self, directory: str, name: str, content: bytes) -> None:
        """Replace a file that a crashed writer left. Raises FileExistsError if it may be alive."""
        facts = self._objects.head(name)
        committed = self._listing.exists(directory)
        old = facts is not None and self._clock.now() - facts.time_ns / 1e9 > TAKE_OVER_AFTER
        if facts is None or committed or not old:
            raise being_created(directory)
        try:
            self._objects.put(name, content, expected=facts.tag)
        except Conflict:
            raise being_created(directory) from None

    def _others(self, directory: str, own: Mapping[str, bytes]) -> set[str]:
        """Return the names of other objects in a directory."""
        return {facts.name for facts in self._all_of(directory)} - own.keys()

    def _all_of(self, directory: str) -> list[Facts]:
        """Return all objects of a directory, pointers included."""
        model = names.model_directory(directory)
        if model is not None:
            return self._models.objects(model.name)
        return [*self._objects.listed(names.object_name(directory))]

    def _created(self) -> dict[str, list[Facts]]:
        """Return the objects of all directories that ``create`` makes, by directory."""
        found: dict[str, list[Facts]] = {}
        for top in (names.BACKBONES, names.MODELS):
            for facts in self._objects.listed(top):
                parts = facts.name.split("/")
                for count in range(2, min(len(parts), 5)):
                    directory = "/".join(parts[:count])
                    if names.commit(directory) is not None or (count == 2 and top == names.MODELS):
                        found.setdefault(directory, []).append(facts)
        for model, pointers in self._pointers.all().items():
            found.setdefault(f"{names.MODELS}/{model}", []).extend(pointers.found.values())
        return found


def is_own(key: str) -> bool:
    """Return True if a key of ``abandoned`` is a marker or a probe, which needs no lock."""
    return key.partition("/")[0] in {names.REFRESHED, names.PROBES}


def _commit_name(directory: str) -> str:
    """Return the object with which a directory that ``create`` makes exists."""
    model = names.model_directory(directory)
    if model is not None:
        return f"{names.pointers(model.name)}/{names.MADE}"
    commit = names.commit(names.object_name(directory))
    assert commit is not None, f"{directory} is no directory that create makes"
    return names.object_name(f"{directory}/{commit}")


def _may_be_leftover(listed: Collection[Facts]) -> bool:
    return all(names.may_be_written(facts.name) for facts in listed)


def _least_age(key: str, age: float) -> float:
    return max(age, MARKER_AGE) if key.startswith(names.REFRESHED) else age
