"""Directories of models in an object store: creation, hiding by a marker, and deletion."""

from __future__ import annotations

import errno

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.object_facts import Facts, total
from topwork.bundle.storage.objects import Objects
from topwork.bundle.storage.pointers import PointerList
from topwork.bundle.storage.storage import HIDDEN, Entry


class ModelDirectories:
    """The directories ``models/<model>``, which exist when their pointers say so."""

    def __init__(self, objects: Objects, pointers: PointerList) -> None:
        self._objects = objects
        self._pointers = pointers

    def exists(self, model: str, *, hidden: bool) -> bool:
        """Return True if a model exists under its own name, or under its hidden one."""
        pointers = self._pointers.of(model)
        return pointers.hidden is not None if hidden else pointers.exists

    def directories(self) -> list[str]:
        """Return the sorted names of the directories of all models, also of hidden ones."""
        found = self._pointers.all()
        shown = [model for model, pointers in found.items() if pointers.exists]
        hidden = [f"{HIDDEN}{model}" for model, pointers in found.items() if pointers.hidden]
        return sorted(shown + hidden)

    def entry(self, model: str, *, hidden: bool) -> Entry | None:
        """Return facts about the directory of a model; None if it does not exist."""
        pointers = self._pointers.of(model)
        if not (pointers.hidden if hidden else pointers.exists):
            return None
        listed = [*self._objects.listed(f"{names.MODELS}/{model}"), *pointers.found.values()]
        marker = pointers.hidden
        return total(listed, time_ns=None if marker is None else marker.time_ns)

    def objects(self, model: str) -> list[Facts]:
        """Return all objects of a model, whether it exists or not."""
        listed = self._objects.listed(f"{names.MODELS}/{model}")
        return [*listed, *self._pointers.of(model).found.values()]

    def make(self, model: str) -> None:
        """Let the directory of a model exist. Raises FileExistsError if it is hidden, or begun."""
        pointers = self._pointers.of(model)
        if pointers.hidden is not None:
            raise FileExistsError(errno.EEXIST, f"{names.MODELS}/{model} is hidden")
        if not pointers.exists:
            if self.objects(model):
                raise being_created(f"{names.MODELS}/{model}")
            self._objects.put(f"{names.pointers(model)}/{names.MADE}", self._objects.nonce())

    def hide(self, model: str) -> None:
        """Hide the directory of a model by a marker. Raises FileNotFoundError."""
        if not self._pointers.of(model).exists:
            raise FileNotFoundError(errno.ENOENT, f"{names.MODELS}/{model} does not exist")
        marker = _marker(model)
        self._objects.put(marker, b"")
        self._pointers.announce(marker)

    def unhide(self, model: str) -> None:
        """Show the directory of a model again. Raises FileNotFoundError."""
        if self._pointers.of(model).hidden is None:
            raise FileNotFoundError(errno.ENOENT, f"{names.MODELS}/{model} is not hidden")
        marker = _marker(model)
        self._objects.delete([marker])
        self._pointers.announce(marker)

    def delete(self, model: str, *, hidden: bool) -> bool:
        """Delete the directory of a model, hidden first; return False if it does not exist."""
        if not self.exists(model, hidden=hidden):
            return False
        prefix, marker = names.pointers(model), _marker(model)
        if not hidden:
            self._objects.put(marker, b"")
        for part in (f"{names.MODELS}/{model}", prefix):
            listed = [facts.name for facts in self._objects.listed(part) if facts.name != marker]
            self._objects.delete(listed)
        self._objects.delete([marker])
        self._pointers.announce(marker)
        return True


def being_created(directory: str) -> FileExistsError:
    """Return the error of a writer that finds objects of another."""
    return FileExistsError(errno.EEXIST, f"{directory} exists, or is being created")


def _marker(model: str) -> str:
    return f"{names.pointers(model)}/{names.DELETED}"
