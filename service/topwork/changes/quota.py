"""Quota of a model on the disk: the bytes that it takes, and whether it may take more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from topwork.bundle import files
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, QuotaExceeded, Unavailable
from topwork.limits import ServerLimits


@dataclass(frozen=True, slots=True)
class ModelQuota:
    """What ``model`` may still take, as it was when this was made."""

    model: str
    repository: Repository
    limits: ServerLimits
    used: int
    """Bytes that it takes."""

    def check(self, total: int, coming: int, images: int) -> None:
        """Raise QuotaExceeded if ``total`` bytes more are too many for the model.

        Or if ``coming``, those of them that are not on the disk yet, are too many for that, or the
        files of the ``images`` that they are. Raises Unavailable if the disk cannot be asked.
        """
        most = self.limits.max_model_bytes
        if self.used + total > most:
            raise QuotaExceeded(
                f"model {self.model!r} takes {self.used} bytes, and {total} more would pass its "
                f"quota of {most}: remove labels, then let topwork gc run",
                subject=f"models/{self.model}",
                reason="MODEL_QUOTA",
            )
        with _readable():
            disk = os.statvfs(self.repository.root)
        free, least = disk.f_bavail * disk.f_frsize, self.limits.min_free_bytes
        if free - coming < least:
            raise _disk_full(f"{free} bytes free, of which {least}")
        files_left, least = disk.f_favail, self.limits.min_free_inodes
        # Some file systems, such as Btrfs, have no fixed number, and say that they have 0 in all.
        if disk.f_files and files_left - images < least:
            raise _disk_full(f"{files_left} inodes (room for files) free, of which {least}")


@dataclass(frozen=True, slots=True)
class _Revision:
    size: int
    """Bytes of its own files."""
    shards: frozenset[str]
    changed: int
    """When its directory was, in ns: a number may be another's after a model was deleted."""


class Quotas:
    """Counts what models take: their revisions, and what these refer to.

    A shard of exemplars counts once a model, with the uploaded images that it names. What only
    other models refer to, or nothing any more, is not counted. Revisions and shards never change,
    so each is looked at once. May be used from several threads at once.
    """

    def __init__(self, repository: Repository, limits: ServerLimits) -> None:
        self._repository = repository
        self._limits = limits
        self._shards: dict[str, int] = {}
        self._revisions: dict[str, dict[int, _Revision]] = {}

    def of(self, model: str, *, pending: int = 0) -> ModelQuota:
        """Return the quota of a model whose unfinished operations have ``pending`` bytes of images.

        Raises NotFound, Unavailable if the repository cannot be read now.
        """
        with _readable():
            known = self._revisions.get(model, {})
            there = {
                number: self._revision(model, number, known.get(number))
                for number in self._repository.revisions(model)
            }
            self._revisions[model] = there
            shards = set().union(*(one.shards for one in there.values()))
            used = sum(one.size for one in there.values()) + sum(map(self._shard, shards))
        return ModelQuota(model, self._repository, self._limits, pending + used)

    def _revision(self, model: str, number: int, known: _Revision | None) -> _Revision:
        path = self._repository.serving_file(model).with_name(str(number))
        shards: frozenset[str] = frozenset()
        changed = 0
        # A damaged one, or one that is deleted meanwhile, counts for its own files only.
        with contextlib.suppress(Corrupt, NotFound, FileNotFoundError):
            changed = path.stat().st_mtime_ns
            if known is not None and known.changed == changed:
                return known
            refs = self._repository.manifest(model, number).exemplars
            shards = frozenset(ref.digest for ref in refs)
        return _Revision(files.size(path), shards, changed)

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


def _disk_full(said: str) -> QuotaExceeded:
    return QuotaExceeded(
        f"the repository's disk has {said} must remain: let topwork gc run",
        subject="repository",
        reason="DISK_FULL",
    )


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Raise Unavailable for what a disk that is away for a moment raises."""
    try:
        yield
    except OSError as error:
        text = f"the repository cannot be read now: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error
