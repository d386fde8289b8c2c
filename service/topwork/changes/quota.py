"""Disk quota of a model: the bytes in use, and the check of an upload against the limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from topwork.bundle.evaluation_sets import EvaluationSets
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, QuotaExceeded, Unavailable
from topwork.limits import ServerLimits


@dataclass(frozen=True, slots=True)
class ModelQuota:
    """The disk quota of ``model`` at one moment."""

    model: str
    repository: Repository
    limits: ServerLimits
    used: int
    """Bytes in use."""

    def check(self, total: int, coming: int, images: int) -> None:
        """Raise QuotaExceeded if ``total`` more bytes exceed the model's quota.

        Also if ``coming`` of them, which are ``images`` images not yet on the disk, leave too few
        free bytes or inodes. Raises Unavailable if the disk's state cannot be read.
        """
        most = self.limits.max_model_bytes
        if self.used + total > most:
            raise QuotaExceeded(
                f"model {self.model!r} uses {self.used} bytes, and {total} more would exceed "
                f"its quota of {most}: remove labels, then run topwork gc",
                subject=f"models/{self.model}",
                reason="MODEL_QUOTA",
            )
        with _readable():
            space = self.repository.storage.space()
        if space is None:
            return
        least = self.limits.min_free_bytes
        if space.free_bytes - coming < least:
            raise _disk_full(f"{space.free_bytes} bytes free, of which {least}")
        least = self.limits.min_free_inodes
        if space.free_files is not None and space.free_files - images < least:
            raise _disk_full(f"{space.free_files} inodes free, of which {least}")


@dataclass(frozen=True, slots=True)
class _Revision:
    size: int
    """Bytes of its own files."""
    shards: frozenset[str]
    changed: int
    """mtime of its directory in ns: a model that is deleted and fitted again reuses numbers."""


class Quotas:
    """Counts the bytes of models: their revisions, and the shards that these refer to.

    A shard of exemplars counts once per model, with the uploaded images that it names, also that
    of a draft or an evaluation set. Files that
    the model does not refer to are not counted. Revisions and shards are immutable, so the size of
    each is read once. Thread-safe.
    """

    def __init__(self, repository: Repository, limits: ServerLimits) -> None:
        self._repository = repository
        self._limits = limits
        self._shards: dict[str, int] = {}
        self._revisions: dict[str, dict[int, _Revision]] = {}

    def of(self, model: str, *, pending: int = 0) -> ModelQuota:
        """Return the quota of a model whose unfinished operations have ``pending`` bytes of images.

        Raises NotFound, and Unavailable if the repository cannot be read now.
        """
        with _readable():
            known = self._revisions.get(model, {})
            revisions = {
                number: self._revision(model, number, known.get(number))
                for number in self._repository.revisions(model)
            }
            self._revisions[model] = revisions
            shards: set[str] = set().union(*(revision.shards for revision in revisions.values()))
            if self._repository.is_draft(model):
                with contextlib.suppress(Corrupt, NotFound):  # or it began to serve meanwhile
                    draft = self._repository.draft(model)
                    shards |= {ref.digest for ref in draft.exemplars}
            for stored in EvaluationSets(self._repository, model).readable():
                shards |= {ref.digest for own in stored.embedded for ref in own.shards}
            used = sum(revision.size for revision in revisions.values())
            used += sum(map(self._shard_size, shards))
        return ModelQuota(model, self._repository, self._limits, pending + used)

    def _revision(self, model: str, number: int, known: _Revision | None) -> _Revision:
        entry = self._repository.storage.entry(self._repository.model_key(model, str(number)))
        if entry is None:
            return _Revision(0, frozenset(), 0)
        if known is not None and known.changed == entry.time_ns:
            return known
        shards: frozenset[str] = frozenset()
        # A revision that is damaged or just being deleted counts for its own files only.
        with contextlib.suppress(Corrupt, NotFound):
            refs = self._repository.manifest(model, number).exemplars
            shards = frozenset(ref.digest for ref in refs)
        return _Revision(entry.size, shards, entry.time_ns)

    def _shard_size(self, digest: str) -> int:
        size = self._shards.get(digest)
        if size is None:
            try:
                contents = self._repository.shard(digest).contents
            except Corrupt:
                return 0
            images = {row.tobytes().hex() for row in contents}
            key = self._repository.key
            keys = [key("exemplars", digest), *(key("images", image) for image in images)]
            size = sum(self._repository.storage.sizes(keys).values())
            self._shards[digest] = size
        return size


def _disk_full(state: str) -> QuotaExceeded:
    return QuotaExceeded(
        f"the repository's disk has {state} must remain: run topwork gc",
        subject="repository",
        reason="DISK_FULL",
    )


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Convert the errors of a disk that is unavailable for a moment to Unavailable."""
    try:
        yield
    except OSError as error:
        text = f"the repository cannot be read now: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error
