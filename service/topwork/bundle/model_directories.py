"""Directories of models: names, locks, drafts, creation, soft deletion.

A deleted model is its directory under another name, which is no valid name of a model: nothing
serves or changes it, one rename deletes or undeletes it, and ``gc`` retains what it refers to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from topwork.bundle import draft as drafts
from topwork.bundle import review_policy
from topwork.bundle.blobs import BlobStore, check_none
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.draft import Current, Draft
from topwork.bundle.names import check_model, is_model
from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.errors import AlreadyExists, NotFound, QuotaExceeded, Stale
from topwork.storage.storage import HIDDEN, Storage, Tag

MODELS = "models"
"""Key of the directory of all models."""


class ModelDirectories(BlobStore):
    """The directories in ``models`` of a repository.

    ``signing`` has the keys that must have signed drafts and revisions before they are read, and
    the key that signs those that are written.
    """

    def __init__(self, storage: Storage | Path, signing: Signing = UNSIGNED) -> None:
        super().__init__(storage)
        self._signing = signing

    def model_names(self) -> list[str]:
        """Return the sorted names of all models, also of those that do not serve yet."""
        return [name for name in self.storage.directories(MODELS) if is_model(name)]

    def stamps(
        self, names: Sequence[str], known: Container[str] = (), *, only: str | None = None
    ) -> dict[str, Hashable | None]:
        """Return the stamps of models' documents; see ``Storage.stamps``.

        Names that are not in ``known`` are left out if they are no valid names of models, such as a
        manual copy.
        """
        stamps = self.storage.stamps(names, only=only)
        return {name: stamp for name, stamp in stamps.items() if name in known or is_model(name)}

    def serving_key(self, model: str) -> str:
        """Return the key of serving.json."""
        return self.model_key(model, SERVING)

    def model_key(self, model: str, name: str) -> str:
        """Return the key of a file or directory of a model. Raises InvalidInput for its name."""
        return f"{self._model(model)}/{name}"

    def review_policy(self, model: str) -> ReviewPolicy:
        """Return a model's review policy; without review.json the default, which is off.

        Raises NotFound, Corrupt.
        """
        return read_policy(self.storage, self._existing(model))

    def set_review_policy(self, model: str, policy: ReviewPolicy) -> None:
        """Store a model's review policy durably, while the model is ``locked``."""
        self.storage.write(self.model_key(model, review_policy.FILE), to_json(policy))

    def draft(self, model: str) -> Draft:
        """Return a model's draft. Raises NotFound, Corrupt."""
        return self._tagged_draft(model)[0]

    def is_draft(self, model: str) -> bool:
        """Return True if a model has a draft, and no serving revision yet."""
        exists = self.storage.exists
        return exists(self.model_key(model, drafts.FILE)) and not exists(self.serving_key(model))

    def set_draft(self, draft: Draft, *, before: Draft) -> None:
        """Store the draft that was made of ``before`` durably, while its model is ``locked``.

        Raises Corrupt if the backbone or a shard that it refers to is not stored, Stale if another
        writer has changed the draft since.
        """
        self._refresh_references(draft)
        found, tag = self._tagged_draft(draft.model)
        if found != before:
            raise Stale(f"the draft of models/{draft.model} was changed by another writer")
        content = drafts.to_bytes(draft, self._signing)
        self.storage.write(self.model_key(draft.model, drafts.FILE), content, expected=tag)

    def _tagged_draft(self, model: str) -> tuple[Draft, Tag]:
        key = f"{self._existing(model)}/{drafts.FILE}"
        if not self.storage.exists(key):
            name = f"models/{model}"
            raise NotFound(f"there is no draft {name!r}", kind="draft", resource=name)
        content, tag = self.storage.read_tagged(key)
        return drafts.from_bytes(content, self._signing, name=key), tag

    def new_model(
        self, draft: Draft, contents: Mapping[str, bytes] = MappingProxyType({}), *, most: int
    ) -> None:
        """Make a model durably, with ``draft`` and further ``contents`` by name.

        Raises AlreadyExists, QuotaExceeded if there are ``most`` models, and as ``set_draft``.
        """
        self._refresh_references(draft)
        content = drafts.to_bytes(draft, self._signing)
        with self.naming():
            directory = self._free(draft.model, most)
            try:
                self.storage.create(directory, {**contents, drafts.FILE: content})
            except FileExistsError:  # a fit
                raise _taken(draft.model) from None

    def check_not_deleted(self, model: str) -> None:
        """Raise AlreadyExists if a deleted model has the name."""
        if self.storage.exists(_deleted(model)):
            raise AlreadyExists(
                f"a deleted model has the name {model!r}: undelete it, or wait until topwork gc "
                "has deleted its files",
                kind="model",
                resource=f"models/{model}",
                reason="MODEL_DELETED",
            )

    def delete_model(self, model: str) -> None:
        """Delete a model durably, so that ``undelete_model`` can restore it. Raises NotFound."""
        with self.naming(), self.locked(model):
            self.storage.hide(self._model(model))

    def undelete_model(self, model: str, *, most: int) -> None:
        """Restore a deleted model durably.

        Raises NotFound, AlreadyExists, QuotaExceeded if there are ``most`` models.
        """
        with self.naming():
            if not self.storage.exists(_deleted(model)):
                name = f"models/{model}"
                raise NotFound(f"there is no deleted model {name!r}", kind="model", resource=name)
            self.storage.unhide(self._free(model, most, deleted=True))

    def deleted_models(self) -> list[str]:
        """Return the keys of the directories of all deleted models, sorted."""
        names = self.storage.directories(MODELS)
        return [f"{MODELS}/{name}" for name in names if name.startswith(HIDDEN)]

    def forget_model(self, deleted: str, *, before: float) -> bool:
        """Delete the files of a deleted model.

        False if it was deleted after ``before`` (seconds since 1970), or exists no longer.
        """
        with self.naming():
            entry = self.storage.entry(deleted)
            return entry is not None and entry.time < before and self.storage.delete(deleted)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Hold the lock under which models get and lose their names. Take ``locked`` after it."""
        self.storage.make_directory(MODELS)
        with self.storage.locked(MODELS):
            yield

    @contextlib.contextmanager
    def locked(self, model: str) -> Iterator[None]:
        """Hold the lock for changing a model's directory, except for readers. Raises NotFound."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.storage.locked(self._existing(model)))
            except FileNotFoundError:
                raise self._not_found(model) from None
            yield

    def _free(self, model: str, most: int, *, deleted: bool = False) -> str:
        """Return the directory of a new model, while ``naming``."""
        directory = self._model(model)
        if self.storage.exists(directory):
            raise _taken(model)
        if not deleted:
            self.check_not_deleted(model)
        count = len(self.model_names())
        if count >= most:
            raise QuotaExceeded(
                f"the repository has {count} models; the limit is {most}",
                subject="repository",
                reason="TOO_MANY_MODELS",
            )
        return directory

    def _existing(self, model: str) -> str:
        """Return the directory of a model. Raises NotFound."""
        directory = self._model(model)
        if not self.storage.exists(directory):
            raise self._not_found(model)
        return directory

    def _not_found(self, model: str) -> NotFound:
        name = f"models/{model}"
        if self.storage.exists(_deleted(model)):
            return NotFound(
                f"the model {name!r} was deleted",
                kind="model",
                resource=name,
                reason="MODEL_DELETED",
            )
        return NotFound(f"there is no model {name!r}", kind="model", resource=name)

    def _refresh_references(self, current: Current) -> None:
        """Refresh the backbone, its twin and shards of a current.

        Raises Corrupt if one of them is missing, except for the twin.
        """
        keys = [
            self.key("backbones", current.backbone),
            *(self.key("exemplars", ref.digest) for ref in current.exemplars),
        ]
        check_none(self.storage.refresh(keys))
        twin = self.backbone_info(current.backbone).twin
        if twin is not None:
            self.storage.refresh([self.key("backbones", twin)])

    def _model(self, model: str) -> str:
        return f"{MODELS}/{check_model(model)}"


def read_policy(storage: Storage, directory: str) -> ReviewPolicy:
    """Return the review policy in the directory of a model. Raises Corrupt."""
    key = f"{directory}/{review_policy.FILE}"
    if not storage.exists(key):
        return ReviewPolicy()
    return from_json(storage.read(key), ReviewPolicy, name=key)


def _deleted(model: str) -> str:
    return f"{MODELS}/{HIDDEN}{check_model(model)}"


def _taken(model: str) -> AlreadyExists:
    name = f"models/{model}"
    return AlreadyExists(
        f"there is a model {name!r} already", kind="model", resource=name, reason="MODEL_EXISTS"
    )
