"""Evaluation sets of a model: held-out images with labels, stored under a name.

    models/<model>/evaluations/<name>/set.json, <revision>.json

A set never changes, except for embeddings by another backbone and new names of labels. The results
of revisions lie beside it, because a revision is immutable and may be signed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated

import msgspec

from topwork.bundle.documents import document, from_json, to_json
from topwork.bundle.evaluation import EvaluationResult
from topwork.bundle.manifest import Digest, ShardRef
from topwork.bundle.names import is_model
from topwork.bundle.store import Repository
from topwork.errors import AlreadyExists, Corrupt, InvalidInput, NotFound
from topwork.storage.storage import Storage, Tag

DIRECTORY = "evaluations"
"""Name of the directory of a model's evaluation sets, in the directory of the model."""

FILE = "set.json"

_RESULT = re.compile(r"([1-9][0-9]{0,17})\.json")

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetImage:
    """One image of an evaluation set."""

    name: str
    label: str
    """As it was stored; empty: of none of the classes, so that it should be called unknown."""
    content: Digest
    """sha256 of the encoded file."""
    columns: tuple[tuple[str, str], ...] = ()
    """Names and values for subgroups, such as ``camera``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSet:
    """Embeddings of a set by one backbone."""

    backbone: Digest
    shards: tuple[ShardRef, ...]
    """One per label of the set, with the label as it was stored."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """Labelled images that no revision of the model should be trained on."""

    model: str
    name: str
    created: datetime
    operation: str = ""
    """Operation that stored it; empty: without a server."""
    max_drop: Share | None = None
    """Largest accepted drop of the mean recall against the parent revision; None: not a gate."""
    images: tuple[SetImage, ...]
    embedded: tuple[EmbeddedSet, ...] = ()
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names that labels got since the set was stored, newest first, by the name in the set."""
    schema: int = 1

    def shards(self, backbone: str) -> tuple[ShardRef, ...] | None:
        """Return the shards of the embeddings by a backbone; None if there are none."""
        return next((each.shards for each in self.embedded if each.backbone == backbone), None)

    def label_in(self, labels: Sequence[str], label: str) -> str:
        """Return the name that a revision with ``labels`` has for a label of the set.

        The newest name that the revision has wins, so that a set follows a rename, and a rollback
        before it. A label that the revision lacks is returned as it was stored.
        """
        names = (*self.renamed.get(label, ()), label)
        return next((name for name in names if name in labels), label)

    def follow(self, renamed: Mapping[str, str]) -> EvaluationSet:
        """Return the set with the new names of labels, given by old name."""
        names = dict(self.renamed)
        for label in sorted({image.label for image in self.images} - {""}):
            known = names.get(label, ())
            for old, new in renamed.items():
                if old == (known[0] if known else label):
                    names[label] = (new, *(name for name in known if name != new))
        return replace(self, renamed=names)


def check_name(name: str, *, field: str = "evaluation_set") -> str:
    """Return the name of an evaluation set, which is also a file name. Raises InvalidInput."""
    if not is_model(name):
        raise InvalidInput(
            f"the name {name[:80]!r} of an evaluation set must be 1 to 63 of a-z 0-9 . _ - "
            "with a letter or digit at both ends",
            field=field,
            reason="EVALUATION_SET_NAME_INVALID",
        )
    return name


def check_max_drop(max_drop: float, *, field: str = "max_drop") -> float:
    """Return the limit of a gate. Raises InvalidInput unless it is 0 to 1."""
    if not 0 <= max_drop <= 1:  # false for NaN
        raise InvalidInput(f"max_drop is {max_drop:g}; it must be 0 to 1", field=field)
    return max_drop


class EvaluationSets:
    """The evaluation sets of one model. Its methods raise NotFound if there is no such model."""

    def __init__(self, repository: Repository, model: str) -> None:
        self._repository = repository
        self._model = model
        self._storage = repository.storage
        self._root = repository.model_key(model, DIRECTORY)

    def names(self) -> list[str]:
        """Return the sorted names of all sets."""
        return set_names(self._storage, self._root)

    def get(self, name: str) -> EvaluationSet:
        """Return a set. Raises NotFound, Corrupt."""
        return self._tagged(name)[0]

    def _tagged(self, name: str) -> tuple[EvaluationSet, Tag]:
        directory = self._existing(name)
        try:
            return read_set(self._storage, directory)
        except Corrupt:
            self._existing(name)  # it may have been deleted meanwhile
            raise

    def all(self) -> list[EvaluationSet]:
        """Return all sets, sorted by name. Raises Corrupt: a gate must not be skipped."""
        found = []
        for name in self.names():
            with contextlib.suppress(NotFound):  # deleted meanwhile
                found.append(self.get(name))
        return found

    def readable(self) -> list[EvaluationSet]:
        """Return the sets that are not damaged, sorted by name."""
        found = []
        for name in self.names():
            with contextlib.suppress(NotFound, Corrupt):
                found.append(self.get(name))
        return found

    def check_free(self, name: str, operation: str = "") -> None:
        """Raise AlreadyExists if a set has the name, unless ``operation`` stored it."""
        with contextlib.suppress(NotFound):
            if self.get(name).operation != operation or not operation:
                raise AlreadyExists(
                    f"model {self._model!r} has an evaluation set {name!r} already: delete it, or "
                    "choose another name",
                    kind="evaluation set",
                    resource=self._resource(name),
                    reason="EVALUATION_SET_EXISTS",
                )

    def create(self, new: EvaluationSet) -> EvaluationSet:
        """Store a set durably, and return it as stored: a repeated operation stores it once.

        Raises AlreadyExists, and Corrupt if one of its shards is not stored.
        """
        with self._repository.locked(self._model):
            self.check_free(new.name, new.operation)
            with contextlib.suppress(NotFound):
                return self.get(new.name)
            self._refresh(new)
            self._storage.create(f"{self._root}/{new.name}", {FILE: to_json(new)})
        return new

    def embed(self, name: str, embedded: EmbeddedSet) -> EvaluationSet:
        """Add the embeddings by another backbone to a set, and return it.

        Raises NotFound, and Corrupt if a shard is not stored.
        """
        return self._change(
            name,
            lambda stored: (
                stored
                if stored.shards(embedded.backbone)
                else replace(stored, embedded=(*stored.embedded, embedded))
            ),
        )

    def follow(self, renamed: Mapping[str, str]) -> None:
        """Let all sets follow the renames of labels, given by old name. Idempotent.

        Harmless if the renamed revision never serves: other revisions have the old name.
        """
        for name in self.names() if renamed else ():
            with contextlib.suppress(NotFound):
                self._change(name, lambda stored: stored.follow(renamed))

    def delete(self, name: str) -> None:
        """Delete a set with its results durably. Raises NotFound."""
        with self._repository.locked(self._model):
            self._storage.delete(self._existing(name))

    def put_result(self, result: EvaluationResult) -> None:
        """Store the result of a revision on a set, in place of an earlier one.

        Does nothing if the set was deleted, or deleted and stored again.
        """
        with self._repository.locked(self._model), contextlib.suppress(NotFound):
            if self.get(result.name).created == result.made:
                key = f"{self._root}/{result.name}/{result.revision}.json"
                self._storage.write(key, to_json(result))

    def result(self, name: str, revision: int) -> EvaluationResult:
        """Return the result of a revision on a set. Raises NotFound, Corrupt."""
        key = f"{self._existing(name)}/{revision}.json"
        if not self._storage.exists(key):
            resource = f"{self._resource(name)}/evaluations/{revision}"
            raise NotFound(
                f"there is no evaluation {resource!r}", kind="evaluation", resource=resource
            )
        return read_result(self._storage, key)

    def results(self, name: str) -> list[EvaluationResult]:
        """Return the readable results on a set, newest revision first. Raises NotFound."""
        directory, found = self._existing(name), []
        for revision in sorted(result_sizes(self._storage, directory), reverse=True):
            with contextlib.suppress(Corrupt):
                found.append(read_result(self._storage, f"{directory}/{revision}.json"))
        return found

    def lacks_result(self, revision: int) -> bool:
        """Return True if a set has no result of a revision."""
        return any(
            revision not in result_sizes(self._storage, f"{self._root}/{name}")
            for name in self.names()
        )

    def _change(self, name: str, change: Callable[[EvaluationSet], EvaluationSet]) -> EvaluationSet:
        with self._repository.locked(self._model):
            stored, tag = self._tagged(name)
            after = change(stored)
            if after != stored:
                self._refresh(after)
                self._storage.write(f"{self._root}/{name}/{FILE}", to_json(after), expected=tag)
            return after

    def _refresh(self, changed: EvaluationSet) -> None:
        """Refresh the shards of a set: gc retains them. Raises Corrupt if one is missing."""
        shards = [ref for embedded in changed.embedded for ref in embedded.shards]
        self._repository.refresh_shards(shards)

    def _existing(self, name: str) -> str:
        """Return the directory of a set. Raises NotFound."""
        directory = f"{self._root}/{check_name(name)}"
        if not self._storage.exists(directory):
            resource = self._resource(name)
            raise NotFound(
                f"there is no evaluation set {resource!r}", kind="evaluation set", resource=resource
            )
        return directory

    def _resource(self, name: str) -> str:
        return f"models/{self._model}/evaluationSets/{name}"


def set_names(storage: Storage, directory: str) -> list[str]:
    """Return the sorted names of all sets in a directory of evaluation sets."""
    return [name for name in storage.directories(directory) if is_model(name)]


def result_sizes(storage: Storage, directory: str) -> dict[int, int]:
    """Return the sizes in bytes of the results in the directory of a set, by revision."""
    found = ((_RESULT.fullmatch(name), entry) for name, entry in storage.files(directory).items())
    return {int(match[1]): entry.size for match, entry in found if match}


def read_set(storage: Storage, directory: str) -> tuple[EvaluationSet, Tag]:
    """Return the set in a directory, with its tag. Raises Corrupt, also if it has another name."""
    key = f"{directory}/{FILE}"
    content, tag = storage.read_tagged(key)
    found = from_json(content, EvaluationSet, name=key)
    if not directory.endswith(f"/{found.name}"):
        raise Corrupt(f"{key} is the evaluation set {found.name!r}")
    return found, tag


def read_result(storage: Storage, key: str) -> EvaluationResult:
    """Return the result in a file. Raises Corrupt, also if it is of another revision."""
    found = from_json(storage.read(key), EvaluationResult, name=key)
    if not key.endswith(f"/{found.name}/{found.revision}.json"):
        raise Corrupt(f"{key} is of revision {found.revision} on {found.name!r}")
    return found
