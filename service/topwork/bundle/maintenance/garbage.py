"""Garbage collection of a repository, while others serve, fit and publish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from topwork.bundle import files
from topwork.bundle.manifest import Manifest
from topwork.bundle.names import is_model
from topwork.bundle.store import Repository, read_manifest, revision_directories
from topwork.bundle.stored import KINDS, BlobKind
from topwork.errors import Corrupt, InvalidInput, NotFound, Unavailable

RemovedKind = Literal["revision", "backbone", "shard", "image", "temporary"]

REMOVABLE: tuple[RemovedKind, ...] = ("revision", "backbone", "shard", "image", "temporary")

_SINGULAR: dict[BlobKind, RemovedKind] = {
    "backbones": "backbone",
    "exemplars": "shard",
    "images": "image",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """One thing that was deleted, or would be."""

    kind: RemovedKind
    path: str
    """Below the repository's root."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What ``collect`` did."""

    removed: tuple[Removed, ...]
    refused: tuple[str, ...]
    """A sentence for each thing that cannot be read; all that it might refer to was kept."""


def collect(
    repository: Repository,
    *,
    keep: int = 10,
    spare_seconds: float = 3600,
    held: Callable[[], Collection[str]] = tuple,
    dry_run: bool = False,
) -> Collected:
    """Delete what no longer serves anybody; with ``dry_run`` say only what would go.

    A model keeps the revision that serves, those that are pinned, and its ``keep`` newest. Shards,
    images and backbones go when nothing that is kept refers to them and ``held`` does not name
    them: it returns the digests of the images that unfinished operations need, and is asked while
    nobody is ``Stored.holding`` images. A shard of held images stays, too; where ``held`` raises
    Unavailable or Corrupt all shards and images stay. Nothing goes that is younger than
    ``spare_seconds``, which should be longer than any writer takes between storing something and
    publishing what refers to it: else that fails. Of temporary names only those go that no living
    writer has. Raises InvalidInput if ``keep`` is below 1: the newest revision stays, so that its
    number is never another's.
    """
    if keep < 1:
        raise InvalidInput(f"keep is {keep}; at least the newest revision is kept", field="keep")
    if not repository.root.is_dir():
        return Collected(removed=(), refused=())
    run = _Run(repository=repository, before=time.time() - spare_seconds, dry_run=dry_run)
    # In this order: what a writer refers to later it has made young since the first of these, and
    # an operation that is finished before the second has published what the third finds.
    old = {kind: run.old(kind) for kind in KINDS}
    # What needs no lock file goes first: on a full disk none can be made.
    run.remove_abandoned(min(spare_seconds, files.ABANDONED_AFTER))
    for name in _models(repository):
        run.remove_revisions(name, keep)
    images = run.held(held)
    references = run.references()
    if references is not None:
        needed = run.needed(references, old["exemplars"], images)
        for kind in KINDS:
            for digest, age in old[kind].items():
                if digest not in needed[kind]:
                    run.remove_stored(kind, digest, age)
    return Collected(removed=tuple(run.removed), refused=tuple(run.refused))


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run of ``collect``."""

    repository: Repository
    before: float
    """What was changed since is spared; seconds since 1970."""
    dry_run: bool
    removed: list[Removed] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    doomed: set[Path] = field(default_factory=set)
    """Directories of revisions that are gone, or would be."""

    def old(self, kind: BlobKind) -> dict[str, int]:
        """Return when all that is old enough was changed, in nanoseconds, by digest."""
        found = {}
        for digest, path in sorted(self.repository.stored(kind).items()):
            changed = _changed(path)
            if changed is not None and changed / 1e9 < self.before:
                found[digest] = changed
        return found

    def held(self, ask: Callable[[], Collection[str]]) -> frozenset[str] | None:
        """Return the digests of the images that unfinished operations need; None if not known."""
        lock = self.repository.lock
        try:
            ask()  # first without the lock, for which uploads wait: a database may be long away
            with contextlib.nullcontext() if self.dry_run else files.locked(lock):
                return frozenset(ask())
        except (Corrupt, Unavailable) as error:
            self.refused.append(f"{error}: no shard and no image was deleted")
            return None

    def remove_revisions(self, model: str, keep: int) -> None:
        """Delete a model's revisions but those that are kept."""
        aside = []
        with contextlib.nullcontext() if self.dry_run else self.repository.locked(model):
            try:
                kept = _kept(self.repository, model, keep)
            except Corrupt as error:
                self.refused.append(f"{error}: no revision of {model!r} was deleted")
                return
            for path in revision_directories(self.repository.root / "models" / model):
                changed = _changed(path)
                if int(path.name) in kept or changed is None or changed / 1e9 >= self.before:
                    continue
                self.note("revision", path, files.size(path))
                self.doomed.add(path)
                if not self.dry_run:
                    aside.append(files.move_aside(path))
        if aside:  # or a crash could bring it back without what it refers to
            files.sync_directory(self.repository.root / "models" / model)
        for path in aside:
            files.delete(path)

    def references(self) -> list[Manifest] | None:
        """Return the manifests of all revisions that stay; None if one cannot be read."""
        found: list[Manifest] = []
        unreadable = False
        # Copies made by hand count, too, whatever their names.
        for directory in sorted((self.repository.root / "models").glob("*")):
            for path in revision_directories(directory):
                try:
                    if path not in self.doomed:
                        found.append(read_manifest(path / "manifest.json"))
                except Corrupt as error:
                    if path.exists():  # and not just deleted by another run
                        unreadable = True
                        self.refused.append(f"{error}: no shard, image or backbone was deleted")
        return None if unreadable else found

    def needed(
        self, references: list[Manifest], old_shards: Collection[str], held: frozenset[str] | None
    ) -> dict[BlobKind, set[str]]:
        """Return the digests of what stays of each kind; where ``held`` is not known, all."""
        backbones = {manifest.backbone for manifest in references}
        if held is None:
            stored = {kind: set(self.repository.stored(kind)) for kind in KINDS}
            return {**stored, "backbones": backbones}
        shards = {ref.digest for manifest in references for ref in manifest.exemplars}
        images = set(held)
        for digest in sorted(shards | self.repository.stored("exemplars").keys()):
            stays = digest in shards or digest not in old_shards
            if not stays and not held:
                continue
            try:
                contents = {row.tobytes().hex() for row in self.repository.shard(digest).contents}
            except Corrupt as error:
                if digest in shards:
                    self.refused.append(f"{error}: no image was deleted")
                    images |= self.repository.stored("images").keys()
            else:
                if stays or not held.isdisjoint(contents):
                    shards.add(digest)
                    images |= contents
        return {
            "backbones": backbones,
            "exemplars": shards,
            "images": images,
        }

    def remove_stored(self, kind: BlobKind, digest: str, changed: int) -> None:
        """Delete a file or directory unless somebody has made it young since ``changed``."""
        path = self.repository.path(kind, digest)
        if self.dry_run:
            self.note(_SINGULAR[kind], path, files.size(path))
            return
        with files.locked(self.repository.lock):
            if _changed(path) != changed:
                return
            self.note(_SINGULAR[kind], path, files.size(path))
            aside = files.move_aside(path)
        files.delete(aside)

    def remove_abandoned(self, age: float) -> None:
        """Delete what crashed writers left more than ``age`` seconds ago."""
        for path in self.repository.abandoned(age=age):
            size = files.size(path)
            if self.dry_run or files.delete_abandoned(path, age=age):
                self.note("temporary", path, size)

    def note(self, kind: RemovedKind, path: Path, size: int) -> None:
        """Remember what is deleted."""
        below = path.relative_to(self.repository.root)
        self.removed.append(Removed(kind=kind, path=str(below), size=size))


def _models(repository: Repository) -> Iterator[str]:
    """Yield the names of all models, also of those that have no serving revision yet."""
    for path in sorted((repository.root / "models").glob("*")):
        if path.is_dir() and is_model(path.name):
            yield path.name


def _kept(repository: Repository, model: str, keep: int) -> set[int]:
    """Return the revisions that stay. Raises Corrupt."""
    kept = set(repository.revisions(model)[-keep:])
    with contextlib.suppress(NotFound):  # none serves yet
        state = repository.serving_state(model)
        kept |= {state.revision, *state.pinned}
    return kept


def _changed(path: Path) -> int | None:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return None
