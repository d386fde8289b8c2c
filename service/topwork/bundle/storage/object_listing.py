"""Facts about files and directories in an object store: existence, size, time and names."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.object_facts import total
from topwork.bundle.storage.object_models import ModelDirectories
from topwork.bundle.storage.objects import Objects
from topwork.bundle.storage.pointers import PointerList
from topwork.bundle.storage.storage import Entry, ForeignName


class Listing:
    """Reads facts by key; see the methods of ``Storage`` with the same names."""

    def __init__(self, objects: Objects, pointers: PointerList, models: ModelDirectories) -> None:
        self._objects = objects
        self._pointers = pointers
        self._models = models

    def entry(self, key: str) -> Entry | None:
        """Return facts about a file or a directory; None if it does not exist."""
        model = names.model_directory(key)
        if model is not None:
            return self._models.entry(model.name, hidden=model.hidden)
        name = names.object_name(key)
        if key.endswith(names.TIMED):
            return self._timed(name)
        if not names.is_directory(name):
            facts = self._objects.head(name)
            if facts is not None or names.is_file(name):
                return None if facts is None else facts.entry
        listed = [*self._objects.listed(name)]
        commit = names.commit(name)
        if commit is not None:
            own = next((facts for facts in listed if facts.name == f"{name}/{commit}"), None)
            return None if own is None else total(listed, time_ns=own.time_ns)
        return total(listed) if listed else None

    def exists(self, key: str) -> bool:
        """Return True if there is a file or a directory ``key``."""
        found = names.split_model(key)
        if found is not None and found.inner in {"", *names.DOCUMENTS}:
            pointers = self._pointers.recent(found.name)
            there = pointers.hidden is not None if found.hidden else pointers.exists
            return there and (not found.inner or found.inner in pointers.found)
        name = names.object_name(key)
        if (commit := names.commit(name)) is not None and names.is_directory(name):
            return self._objects.head(f"{name}/{commit}") is not None
        if names.is_directory(name) or key.endswith(names.TIMED):
            try:
                return self._objects.first(name) is not None
            except ForeignName:
                return True
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
        found = {own: facts.entry for own, facts in inner.items()}
        if any(own.endswith(names.TIMED) for own in directories):
            for facts in self._objects.listed(name):
                own, _, time_ns = facts.name.removeprefix(f"{name}/").partition("/")
                if own.endswith(names.TIMED) and time_ns.isdecimal():
                    found[own] = Entry(time_ns=int(time_ns), size=facts.size)
        model = names.model_directory(directory)
        if model is not None:
            pointers = self._pointers.of(model.name)
            if not (pointers.hidden if model.hidden else pointers.exists):
                return {}
            for own in names.DOCUMENTS:
                if own in pointers.found:
                    found[own] = pointers.found[own].entry
        return {own: entry for own, entry in found.items() if not own.startswith(".")}

    def directories(self, directory: str) -> list[str]:
        """Return the sorted names of the directories in a directory."""
        if directory == names.MODELS:
            return self._models.directories()
        found = names.split_model(directory)
        if found is not None and not self._models.exists(found.name, hidden=found.hidden):
            return []
        name = names.object_name(directory)
        own = names.OWN if not directory else ()
        inner = [
            each
            for each in self._objects.children(name)[1]
            if not each.endswith(names.TIMED) and not each.startswith(".") and each not in own
        ]
        commits = {each: names.commit(f"{name}/{each}") for each in inner}
        if any(commits.values()):
            committed = self._committed(name, commits)
            inner = [each for each in inner if commits[each] is None or each in committed]
        return inner

    def _committed(self, name: str, commits: dict[str, str | None]) -> set[str]:
        """Return which of the directories in a directory have their commit."""
        files = {f"{name}/{own}/{commit}": own for own, commit in commits.items() if commit}
        # The directories of revisions come before all others, which may be large.
        last = max(files)
        try:
            listed = itertools.takewhile(
                lambda facts: facts.name <= last, self._objects.listed(name)
            )
            return {files[facts.name] for facts in listed if facts.name in files}
        except ForeignName:  # in another directory: it must not hide the revisions
            heads = self._objects.heads(files)
            return {files[file] for file, facts in heads.items() if facts is not None}

    def _timed(self, name: str) -> Entry | None:
        found = [
            Entry(time_ns=int(time_ns), size=facts.size)
            for facts in self._objects.listed(name)
            if (time_ns := facts.name.removeprefix(f"{name}/")).isdecimal()
        ]
        return max(found, key=lambda entry: entry.time_ns, default=None)
