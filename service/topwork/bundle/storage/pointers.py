"""Pointers in an object store: which models exist, and change detection by one small request.

All objects below ``pointers/`` fit in one listing request per 1,000, with their ETags. After each
change there a writer replaces the object ``changed``, which readers poll with a conditional
request; they list the pointers if it changed, or each ``RELIST`` seconds, for a writer may die in
between.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, field

from topwork.bundle.names import is_model
from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.object_facts import Facts
from topwork.bundle.storage.objects import Missing, Objects
from topwork.bundle.storage.storage import ABSENT, Tag

RELIST = 30.0
"""Seconds between listings without a change; raising it hides longer what a dying writer wrote."""


@dataclass(slots=True)
class Pointers:
    """The objects below ``pointers/`` of one model, by their names there."""

    found: dict[str, Facts] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether the model's directory exists under its own name."""
        return names.MADE in self.found and names.DELETED not in self.found

    @property
    def hidden(self) -> Facts | None:
        """The marker of a hidden directory; None if it is not hidden."""
        return self.found.get(names.DELETED) if names.MADE in self.found else None

    @property
    def documents(self) -> dict[str, Tag]:
        """The tags of the documents by file name; none if the model does not exist."""
        shown = self.found if self.exists else {}
        return {name: facts.tag for name, facts in shown.items() if name in names.DOCUMENTS}


class PointerList:
    """The pointers of all models, as this process saw them last."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._mutex = threading.Lock()
        self._changed: Tag | None = None
        self._listed = -RELIST
        self._documents: dict[str, dict[str, Tag]] = {}
        self._fresh: dict[str, Pointers] = {}
        self._fresh_until = 0.0

    def of(self, model: str) -> Pointers:
        """Return the pointers of one model."""
        prefix = names.pointers(model)
        return Pointers(
            {facts.name.removeprefix(f"{prefix}/"): facts for facts in self._objects.listed(prefix)}
        )

    def all(self) -> dict[str, Pointers]:
        """Return the pointers of all models."""
        found: dict[str, Pointers] = {}
        for facts in self._objects.listed(names.POINTERS):
            match facts.name.split("/"):
                case [_, model, name]:
                    found.setdefault(model, Pointers()).found[name] = facts
        return found

    def announce(self, name: str) -> None:
        """Tell other processes if a changed object is a pointer; they may find out later."""
        if not names.is_pointer(name):
            return
        self.forget_fresh()
        with contextlib.suppress(OSError):
            self._objects.put(names.CHANGED, self._objects.nonce())

    def stamps(
        self, documents: Sequence[str], known: Container[str], *, only: str | None = None
    ) -> dict[str, Hashable | None]:
        """Return the tag of the first of ``documents`` that each model has; see ``Storage``."""
        with self._mutex:
            if only is not None:
                self._documents[only] = self.of(only).documents
            else:
                self._relist()
            stamps: dict[str, Hashable | None] = {}
            for model, tags in self._documents.items():
                tag = next((tags[name] for name in documents if name in tags), None)
                if (
                    tag is not None
                    and only in {None, model}
                    and (model in known or is_model(model))
                ):
                    stamps[model] = tag
            return stamps

    def recent(self, model: str) -> Pointers:
        """Return the pointers of a model as the first listing had them a moment ago, or as now.

        This makes the start with a warm cache one request for the pointers of all models.
        """
        if time.monotonic() < self._fresh_until and (found := self._fresh.get(model)) is not None:
            return found
        return self.of(model)

    def forget_fresh(self, model: str | None = None) -> None:
        """Let the next reads of a model's pointers, or of all, ask the store."""
        if model is None:
            self._fresh = {}
        else:
            self._fresh.pop(model, None)

    def _relist(self) -> None:
        changed = self._read_changed()  # before the listing, which is then at least as new
        now = time.monotonic()
        if changed == self._changed and now - self._listed < RELIST:
            return
        first = self._changed is None
        found = self.all()
        if not found and not changed:
            raise FileNotFoundError(errno.ENOENT, f"{self._objects.url} has no models")
        self._documents = {model: each.documents for model, each in found.items()}
        self._changed, self._listed = changed, now
        self._fresh = found if first else {}
        self._fresh_until = now + RELIST

    def _read_changed(self) -> Tag:
        try:
            got = self._objects.get(names.CHANGED, unless=self._changed or ABSENT)
        except Missing:
            return ABSENT
        return got[1].tag if got is not None else self._changed or ABSENT
