"""Directories of models: names, locks, drafts, creation, soft deletion.

A deleted model is its directory under another name, which is no valid name of a model: nothing
serves or changes it, one rename deletes or undeletes it, and ``gc`` retains what it refers to.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from topwork.bundle import draft as drafts
from topwork.bundle import files, review_policy
from topwork.bundle.blobs import BlobStore
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.draft import Current, Draft
from topwork.bundle.names import check_model, is_model
from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.errors import AlreadyExists, Corrupt, NotFound, QuotaExceeded

DELETED = ".deleted-"
"""Prefix of the directory of a deleted model."""


class ModelDirectories(BlobStore):
    """The directories in ``models`` of a repository.

    ``signing`` has the keys that must have signed drafts and revisions before they are read, and
    the key that signs those that are written.
    """

    def __init__(self, root: Path, signing: Signing = UNSIGNED) -> None:
        super().__init__(root)
        self._signing = signing

    def model_names(self) -> list[str]:
        """Return the sorted names of all models, also of those that do not serve yet."""
        try:
            with os.scandir(self.root / "models") as entries:
                return sorted(
                    each.name for each in entries if is_model(each.name) and each.is_dir()
                )
        except FileNotFoundError:
            return []

    def serving_file(self, model: str) -> Path:
        """Return the path of serving.json, for callers that poll it."""
        return self._model(model) / "serving.json"

    def sign(self, manifest: bytes) -> bytes | None:
        """Return the content of manifest.sig; None without a signing key."""
        return self._signing.sign(manifest)

    def review_policy(self, model: str) -> ReviewPolicy:
        """Return a model's review policy; without review.json the default, which is off.

        Raises NotFound, Corrupt.
        """
        return read_policy(self._existing(model))

    def set_review_policy(self, model: str, policy: ReviewPolicy) -> None:
        """Store a model's review policy durably, while the model is ``locked``."""
        files.write_file(self._model(model) / review_policy.FILE, to_json(policy))

    def draft(self, model: str) -> Draft:
        """Return a model's draft. Raises NotFound, Corrupt."""
        path = files.existing(
            self._existing(model) / drafts.FILE, kind="draft", name=f"models/{model}"
        )
        return drafts.from_bytes(files.read(path), self._signing, name=files.short_path(path))

    def is_draft(self, model: str) -> bool:
        """Return True if a model has a draft, and no serving revision yet."""
        path = self.serving_file(model)
        return path.with_name(drafts.FILE).exists() and not path.exists()

    def set_draft(self, draft: Draft) -> None:
        """Store a draft durably, while its model is ``locked``.

        Raises Corrupt if the backbone or a shard that it refers to is not stored.
        """
        self._refresh_references(draft)
        content = drafts.to_bytes(draft, self._signing)
        files.write_file(self._model(draft.model) / drafts.FILE, content)

    @contextlib.contextmanager
    def new_model(self, draft: Draft, *, most: int) -> Iterator[Path]:
        """Yield a directory with ``draft`` that becomes a model durably when the block succeeds.

        Raises AlreadyExists, QuotaExceeded if there are ``most`` models, and as ``set_draft``.
        """
        self._refresh_references(draft)
        with self.naming():
            path = self._free(draft.model, most)
            try:
                with files.new_directory(path) as directory:
                    (directory / drafts.FILE).write_bytes(drafts.to_bytes(draft, self._signing))
                    yield directory
            except FileExistsError:  # a fit
                raise _taken(draft.model) from None

    def check_not_deleted(self, model: str) -> None:
        """Raise AlreadyExists if a deleted model has the name."""
        if self._deleted(model).exists():
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
            path = self._model(model)
            files.touch(path)  # the age of its deletion, for gc
            path.rename(self._deleted(model))
            files.sync_directory(path.parent)

    def undelete_model(self, model: str, *, most: int) -> None:
        """Restore a deleted model durably.

        Raises NotFound, AlreadyExists, QuotaExceeded if there are ``most`` models.
        """
        with self.naming():
            deleted = self._deleted(model)
            if not deleted.exists():
                name = f"models/{model}"
                raise NotFound(f"there is no deleted model {name!r}", kind="model", resource=name)
            path = self._free(model, most, deleted=True)
            deleted.rename(path)
            files.sync_directory(path.parent)

    def deleted_models(self) -> list[Path]:
        """Return the directories of all deleted models, sorted."""
        return sorted((self.root / "models").glob(f"{DELETED}*"))

    def forget_model(self, deleted: Path, *, before: float) -> Path | None:
        """Move a deleted model's directory aside, for ``files.delete``, and return its new path.

        None if it was deleted after ``before`` (seconds since 1970), or exists no longer.
        """
        with self.naming():
            try:
                if deleted.stat().st_mtime >= before:
                    return None
            except FileNotFoundError:
                return None
            aside = files.move_aside(deleted)
            files.sync_directory(deleted.parent)
            return aside

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Hold the lock under which models get and lose their names. Take ``locked`` after it."""
        models = self.root / "models"
        models.mkdir(parents=True, exist_ok=True)
        with files.locked(models / ".lock"):
            yield

    @contextlib.contextmanager
    def locked(self, model: str) -> Iterator[None]:
        """Hold the lock for changing a model's directory, except for readers. Raises NotFound."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.locked(self._existing(model) / ".lock"))
            except FileNotFoundError:
                raise self._not_found(model) from None
            yield

    def _free(self, model: str, most: int, *, deleted: bool = False) -> Path:
        """Return the directory of a new model, while ``naming``."""
        path = self._model(model)
        if path.exists():
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
        return path

    def _existing(self, model: str) -> Path:
        """Return the directory of a model. Raises NotFound."""
        path = self._model(model)
        if not path.exists():
            raise self._not_found(model)
        return path

    def _not_found(self, model: str) -> NotFound:
        name = f"models/{model}"
        if self._deleted(model).exists():
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
        for path in (
            self.path("backbones", current.backbone),
            *(self.path("exemplars", ref.digest) for ref in current.exemplars),
        ):
            if not self.refresh(path):
                raise Corrupt(f"{files.short_path(path)} is missing")
        twin = self.backbone_info(current.backbone).twin
        if twin is not None:
            self.refresh(self.path("backbones", twin))

    def _model(self, model: str) -> Path:
        return self.root / "models" / check_model(model)

    def _deleted(self, model: str) -> Path:
        return self.root / "models" / f"{DELETED}{check_model(model)}"


def read_policy(directory: Path) -> ReviewPolicy:
    """Return the review policy in the directory of a model. Raises Corrupt."""
    path = directory / review_policy.FILE
    if not path.exists():
        return ReviewPolicy()
    return from_json(files.read(path), ReviewPolicy, name=files.short_path(path))


def _taken(model: str) -> AlreadyExists:
    name = f"models/{model}"
    return AlreadyExists(
        f"there is a model {name!r} already", kind="model", resource=name, reason="MODEL_EXISTS"
    )
