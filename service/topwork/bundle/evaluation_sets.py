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
from pathlib import Path
from typing import Annotated

import msgspec

from topwork.bundle import files
from topwork.bundle.documents import document, from_json, to_json
from topwork.bundle.evaluation import EvaluationResult
from topwork.bundle.manifest import Digest, ShardRef
from topwork.bundle.names import is_model
from topwork.bundle.store import Repository
from topwork.errors import AlreadyExists, Corrupt, InvalidInput, NotFound

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
        self._root = repository.serving_file(model).with_name(DIRECTORY)

    def names(self) -> list[str]:
        """Return the sorted names of all sets."""
        return [path.name for path in set_directories(self._root.parent)]

    def get(self, name: str) -> EvaluationSet:
        """Return a set. Raises NotFound, Corrupt."""
        path = self._existing(name)
        try:
            return read_set(path)
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
            with files.new_directory(self._root / new.name) as directory:
                (directory / FILE).write_bytes(to_json(new))
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
            aside = files.move_aside(self._existing(name))
            files.sync_directory(self._root)
        files.delete(aside)

    def put_result(self, result: EvaluationResult) -> None:
        """Store the result of a revision on a set, in place of an earlier one.

        Does nothing if the set was deleted, or deleted and stored again.
        """
        with self._repository.locked(self._model), contextlib.suppress(NotFound):
            if self.get(result.name).created == result.made:
                path = self._root / result.name / f"{result.revision}.json"
                files.write_file(path, to_json(result))

    def result(self, name: str, revision: int) -> EvaluationResult:
        """Return the result of a revision on a set. Raises NotFound, Corrupt."""
        path = files.existing(
            self._existing(name) / f"{revision}.json",
            kind="evaluation",
            name=f"{self._resource(name)}/evaluations/{revision}",
        )
        return read_result(path)

    def results(self, name: str) -> list[EvaluationResult]:
        """Return the readable results on a set, newest revision first. Raises NotFound."""
        found = []
        for _, path in sorted(result_files(self._existing(name)).items(), reverse=True):
            with contextlib.suppress(Corrupt):
                found.append(read_result(path))
        return found

    def lacks_result(self, revision: int) -> bool:
        """Return True if a set has no result of a revision."""
        return any(revision not in result_files(self._root / name) for name in self.names())

    def _change(self, name: str, change: Callable[[EvaluationSet], EvaluationSet]) -> EvaluationSet:
        with self._repository.locked(self._model):
            stored = self.get(name)
            after = change(stored)
            if after != stored:
                self._refresh(after)
                files.write_file(self._existing(name) / FILE, to_json(after))
            return after

    def _refresh(self, changed: EvaluationSet) -> None:
        """Refresh the shards of a set: gc retains them. Raises Corrupt if one is missing."""
        for embedded in changed.embedded:
            for ref in embedded.shards:
                path = self._repository.path("exemplars", ref.digest)
                if not self._repository.refresh(path):
                    raise Corrupt(f"{files.short_path(path)} is missing")

    def _existing(self, name: str) -> Path:
        """Return the directory of a set. Raises NotFound."""
        path = self._root / check_name(name)
        return files.existing(path, kind="evaluation set", name=self._resource(name))

    def _resource(self, name: str) -> str:
        return f"models/{self._model}/evaluationSets/{name}"


def set_directories(model: Path) -> list[Path]:
    """Return the directories of all sets in the directory of a model, sorted by name."""
    return sorted(path for path in (model / DIRECTORY).glob("*") if is_model(path.name))


def result_files(directory: Path) -> dict[int, Path]:
    """Return the files of results in the directory of a set, by revision."""
    found = ((_RESULT.fullmatch(path.name), path) for path in directory.glob("*"))
    return {int(match[1]): path for match, path in found if match}


def read_set(directory: Path) -> EvaluationSet:
    """Return the set in a directory. Raises Corrupt, also if it is of another name."""
    name = files.short_path(directory / FILE)
    found = from_json(files.read(directory / FILE), EvaluationSet, name=name)
    if found.name != directory.name:
        raise Corrupt(f"{name} is the evaluation set {found.name!r}")
    return found


def read_result(path: Path) -> EvaluationResult:
    """Return the result in a file. Raises Corrupt, also if it is of another revision."""
    found = from_json(files.read(path), EvaluationResult, name=files.short_path(path))
    if (found.name, str(found.revision)) != (path.parent.name, path.stem):
        raise Corrupt(f"{files.short_path(path)} is of revision {found.revision} on {found.name!r}")
    return found
