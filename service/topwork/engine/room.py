"""What a model takes on the disk, and whether it may take more."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass

from topwork.bundle import files
from topwork.bundle.limits import Limits
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, QuotaExceeded


@dataclass(frozen=True, slots=True)
class ModelRoom:
    """What ``model`` may still take, as it was when this was made."""

    model: str
    repository: Repository
    limits: Limits
    used: int
    """Bytes that it takes."""

    def check(self, total: int, coming: int) -> None:
        """Raise QuotaExceeded if ``total`` bytes more are too many for the model.

        Or if ``coming``, those of them that are not on the disk yet, are too many for that.
        """
        most = self.limits.max_model_bytes
        if self.used + total > most:
            raise QuotaExceeded(
                f"model {self.model!r} takes {self.used} bytes, and {total} more would pass its "
                f"quota of {most}: remove labels, then let topwork gc run",
                subject=f"models/{self.model}",
                reason="MODEL_QUOTA",
            )
        free, least = shutil.disk_usage(self.repository.root).free, self.limits.min_free_bytes
        if free - coming < least:
            raise QuotaExceeded(
                f"the repository's disk has {free} bytes free, of which {least} must remain",
                subject="repository",
                reason="DISK_FULL",
            )


@dataclass(frozen=True, slots=True)
class _Revision:
    size: int
    """Bytes of its own files."""
    shards: frozenset[str]


class Rooms:
    """Counts what models take: their revisions, and what these refer to.

    A shard of exemplars counts once a model, with the uploaded images that it names. What only
    other models refer to, or nothing any more, is not counted. Revisions and shards never change,
    so each is looked at once. May be used from several threads at once.
    """

    def __init__(self, repository: Repository, limits: Limits) -> None:
        self._repository = repository
        self._limits = limits
        self._shards: dict[str, int] = {}
        self._revisions: dict[tuple[str, int], _Revision] = {}

    def of(self, model: str, *, pending: int = 0) -> ModelRoom:
        """Return the room of a model whose unfinished operations have ``pending`` bytes of images.

        Raises NotFound.
        """
        there = [self._revision(model, number) for number in self._repository.revisions(model)]
        shards = set().union(*(one.shards for one in there))
        used = pending + sum(one.size for one in there) + sum(map(self._shard, shards))
        return ModelRoom(model, self._repository, self._limits, used)

    def _revision(self, model: str, number: int) -> _Revision:
        found = self._revisions.get((model, number))
        if found is None:
            path = self._repository.serving_file(model).with_name(str(number))
            shards: frozenset[str] = frozenset()
            # A damaged one, or one that is deleted meanwhile, counts for its own files only.
            with contextlib.suppress(Corrupt, NotFound):
                refs = self._repository.manifest(model, number).exemplars
                shards = frozenset(ref.digest for ref in refs)
            found = _Revision(files.size(path), shards)
            self._revisions[model, number] = found
        return found

    def _shard(self, digest: str) -> int:
        size = self._shards.get(digest)
        if size is None:
            try:
                contents = self._repository.shard(digest).contents
            except Corrupt:
                return 0
            named = {row.tobytes().hex() for row in contents}
            size = files.size(self._repository.path("exemplars", digest)) + sum(
                files.size(self._repository.path("images", one)) for one in named
            )
            self._shards[digest] = size
        return size
