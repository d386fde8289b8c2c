"""Garbage collection of a repository, concurrent with servers, workers and fits."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

from topwork.bundle import candidates, draft
from topwork.bundle.blobs import KINDS, BlobKind
from topwork.bundle.candidates import delete_expired
from topwork.bundle.draft import Current, Draft
from topwork.bundle.evaluation_sets import DIRECTORY as SETS
from topwork.bundle.evaluation_sets import EvaluationSet, read_set, result_sizes, set_names
from topwork.bundle.examples import rows_with
from topwork.bundle.manifest import Manifest
from topwork.bundle.model_directories import MODELS, read_policy
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.signing.signatures import UNSIGNED
from topwork.bundle.storage.storage import ABANDONED_AFTER, Entry, ForeignName, Storage
from topwork.bundle.store import MANIFEST, Repository, read_manifest, revision_numbers
from topwork.errors import Corrupt, InvalidInput, NotFound, Unavailable

RemovedKind = Literal[
    "model",
    "revision",
    "evaluation",
    "backbone",
    "shard",
    "image",
    "temporary",
    "candidate",
]

REMOVABLE: tuple[RemovedKind, ...] = get_args(RemovedKind)

DELETED_SECONDS = 7 * 86400.0
"""Raising it lets deleted models be undeleted for longer, and frees their files later."""

MUST_STAY = "it serves, is pinned, or is the newest; remove the example from the model, or unpin it"

_SINGULAR: dict[BlobKind, RemovedKind] = {
    "backbones": "backbone",
    "exemplars": "shard",
    "images": "image",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """File or directory that was deleted, or would be in a dry run."""

    kind: RemovedKind
    path: str
    """Its key, relative to the repository's root."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Result of ``collect``."""

    removed: tuple[Removed, ...]
    refused: tuple[str, ...]
    """One sentence per unreadable file, whose possible references were therefore retained."""


def collect(
    repository: Repository,
    *,
    keep: int = 10,
    spare_seconds: float = 3600,
    deleted_seconds: float = DELETED_SECONDS,
    pending_images: Callable[[], Collection[str]] = tuple,
    erase: Collection[str] = (),
    dry_run: bool = False,
) -> Collected:
    """Delete revisions and blobs that are not in use; with ``dry_run`` only list them.

    Retains the serving revision, the pinned revisions and the ``keep`` newest of each model, drafts
    of models that do not serve yet, models deleted within the last ``deleted_seconds``, all
    evaluation sets with their results of retained revisions, and all
    shards, images and backbones that they refer to, with the fp32 twins of the backbones, and
    the backbones that were added by name.
    ``pending_images`` returns the digests of images that unfinished operations need; it is called
    while no upload is in ``BlobStore.holding``. These images and their shards are retained, too. If
    ``pending_images`` raises Unavailable or Corrupt, all shards and images are retained.

    Retains everything younger than ``spare_seconds``. That should be longer than any writer takes
    from storing a blob to publishing a reference to it; otherwise publishing can fail. Temporary
    names are deleted only if their writer is dead. Raises InvalidInput if ``keep`` is below 1: the
    newest revision is always retained, so that its number is not reused.

    ``erase`` are image digests in hexadecimal. All revisions, shards and images of these examples
    are deleted whatever their age, and a revision that must be retained with one is refused.
    """
    if keep < 1:
        raise InvalidInput(f"keep is {keep}; the minimum is 1", field="keep")
    if not repository.storage.exists(""):
        return Collected(removed=(), refused=())
    now = repository.storage.now()
    run = _Run(repository=repository, before=now - spare_seconds, dry_run=dry_run)
    # The order matters: blobs that a writer refers to later are refreshed after the first listing;
    # an operation that finishes before the second has published a revision that the third finds.
    run.find_erased(erase)
    old = {kind: run.old_blobs(kind) for kind in KINDS}
    # Temporary names first: their deletion needs no lock file, which a full disk cannot create.
    run.remove_abandoned(min(spare_seconds, ABANDONED_AFTER))
    run.remove_deleted(now - deleted_seconds)
    run.remove_candidates(erase)
    for name in repository.model_names():
        with contextlib.suppress(NotFound):  # deleted meanwhile
            run.remove_revisions(name, keep)
    images = run.read_pending(pending_images)
    # A deletion or undeletion meanwhile would hide a model's references.
    with contextlib.nullcontext() if dry_run else repository.naming():
        drafts = run.read_drafts()  # first: a model that is no draft has published a revision
        manifests = run.read_manifests()
        sets = run.read_sets()
    if manifests is not None and drafts is not None and sets is not None:
        retained = run.retained_blobs([*drafts, *manifests], sets, old["exemplars"], images)
        for kind in KINDS:
            for digest, entry in old[kind].items():
                if digest not in retained[kind]:
                    run.remove_blob(kind, digest, entry)
                elif digest in run.erased[kind] and not run.refused:
                    key = repository.key(kind, digest)
                    run.refused.append(f"{key} has an example to erase, and is still needed")
    return Collected(removed=tuple(run.removed), refused=tuple(run.refused))


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run of ``collect``."""

    repository: Repository
    before: float
    """Files changed later are retained; seconds since 1970."""
    dry_run: bool
    removed: list[Removed] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    removed_directories: set[str] = field(default_factory=set)
    """Keys of models and revisions that were deleted, or would be in a dry run."""
    erased: dict[BlobKind, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Digests of the blobs that have an example to erase."""

    @property
    def storage(self) -> Storage:
        """The storage of the repository."""
        return self.repository.storage

    def find_erased(self, examples: Collection[str]) -> None:
        """Find the shards and images of examples, given by image digests in hexadecimal."""
        if not examples:
            return
        for digest in sorted(self.repository.stored("exemplars")):
            try:
                shard = self.repository.shard(digest)
            except Corrupt as error:
                self.refused.append(f"{error}: it may have an example to erase")
                continue
            rows = rows_with(shard.digests, [*examples])
            if rows.any():
                self.erased["exemplars"].add(digest)
                self.erased["images"] |= {row.tobytes().hex() for row in shard.contents[rows]}

    def old_blobs(self, kind: BlobKind) -> dict[str, Entry]:
        """Return facts about all old blobs of a kind, by digest."""
        return {
            digest: entry
            for digest, entry in sorted(self.repository.stored(kind).items())
            if entry.time < self.before or digest in self.erased[kind]
        }

    def read_pending(self, query: Callable[[], Collection[str]]) -> frozenset[str] | None:
        """Return the digests of the images that unfinished operations need; None if unknown."""
        try:
            query()  # first without the lock, which blocks uploads: the database may time out
            with contextlib.nullcontext() if self.dry_run else self.storage.locked(""):
                return frozenset(query())
        except (Corrupt, Unavailable) as error:
            self.refused.append(f"{error}: no shard and no image was deleted")
            return None

    def remove_revisions(self, model: str, keep: int) -> None:
        """Delete all revisions of a model that are old and not retained."""
        directory = self.repository.model_key(model, "")
        with contextlib.nullcontext() if self.dry_run else self.repository.locked(model):
            try:
                retained = _retained_revisions(self.repository, model, keep)
                always = _retained_revisions(self.repository, model, 1)
            except Corrupt as error:
                self.refused.append(f"{error}: no revision of {model!r} was deleted")
                return
            for number in self.repository.revisions(model):
                key = f"{directory}{number}"
                entry = self.storage.entry(key)
                if entry is None:
                    continue
                if self.has_erased(key):
                    if number in always:
                        name = f"models/{model}/revisions/{number}"
                        self.refused.append(f"{name} has an example to erase: {MUST_STAY}")
                        continue
                elif number in retained or entry.time >= self.before:
                    continue
                self.removed_directories.add(key)
                if self.dry_run or self.storage.delete(key):
                    self.record("revision", key, entry.size)

    def has_erased(self, revision: str) -> bool:
        """Return True if a revision has an example to erase; False if it cannot be read."""
        if not self.erased["exemplars"]:
            return False
        with contextlib.suppress(Corrupt):  # read_manifests refuses it
            refs = read_manifest(self.storage, f"{revision}/{MANIFEST}").exemplars
            return any(ref.digest in self.erased["exemplars"] for ref in refs)
        return False

    def remove_deleted(self, before: float) -> None:
        """Delete the files of models that were deleted before a time, in seconds since 1970."""
        for key in self.repository.deleted_models():
            entry = self.storage.entry(key)
            if entry is None or entry.time >= before:
                continue
            if self.dry_run or self.repository.forget_model(key, before=before):
                self.removed_directories.add(key)
                self.record("model", key, entry.size)

    def remove_candidates(self, erase: Collection[str]) -> None:
        """Delete the images of review queues that are older than their policy says, or erased."""
        for directory in self.model_directories():
            try:
                keep: float = read_policy(self.storage, directory).keep_seconds
            except Corrupt as error:
                self.refused.append(f"{error}: no image of its review queue was deleted as too old")
                keep = math.inf
            delete_expired(
                self.storage,
                f"{directory}/{candidates.DIRECTORY}",
                before=self.storage.now() - keep,
                erase=erase,
                dry_run=self.dry_run,
                on_delete=lambda key, size: self.record("candidate", key, size),
            )

    def read_drafts(self) -> list[Draft] | None:
        """Return the drafts of all models that do not serve yet; None if one is unreadable."""
        found: list[Draft] = []
        unreadable = False
        for directory in self.model_directories():
            key = f"{directory}/{draft.FILE}"
            if not self.storage.exists(key) or self.storage.exists(f"{directory}/{SERVING}"):
                continue
            try:
                found.append(draft.from_bytes(self.storage.read(key), UNSIGNED, name=key))
            except Corrupt as error:
                if self.storage.exists(key):  # otherwise it was deleted meanwhile
                    unreadable = True
                    self.refused.append(f"{error}: no shard, image or backbone was deleted")
        return None if unreadable else found

    def model_directories(self) -> list[str]:
        """Return the directories of models, deleted ones included.

        Also of manual copies, which may have names that are not valid for models.
        """
        keys = [f"{MODELS}/{name}" for name in self.storage.directories(MODELS)]
        return [key for key in keys if key not in self.removed_directories]

    def read_sets(self) -> list[EvaluationSet] | None:
        """Return the evaluation sets of all models; None if one is unreadable.

        Deletes their results of revisions that are deleted. A set with an example to erase is
        refused.
        """
        found: list[EvaluationSet] = []
        unreadable = False
        for model in self.model_directories():
            for name in set_names(self.storage, f"{model}/{SETS}"):
                directory = f"{model}/{SETS}/{name}"
                self.remove_results(model, directory)
                try:
                    stored, _ = read_set(self.storage, directory)
                except Corrupt as error:
                    if self.storage.exists(directory):  # otherwise it was deleted meanwhile
                        unreadable = True
                        self.refused.append(f"{error}: no shard, image or backbone was deleted")
                    continue
                found.append(stored)
                shards = {ref.digest for each in stored.embedded for ref in each.shards}
                if not shards.isdisjoint(self.erased["exemplars"]):
                    self.refused.append(
                        f"the evaluation set {name!r} of {stored.model!r} has an example to "
                        "erase: delete the set"
                    )
        return None if unreadable else found

    def remove_results(self, model: str, directory: str) -> None:
        """Delete the results of revisions that are deleted from the directory of a set."""
        for revision, size in result_sizes(self.storage, directory).items():
            gone, key = f"{model}/{revision}", f"{directory}/{revision}.json"
            if gone not in self.removed_directories and self.storage.exists(gone):
                continue
            if self.dry_run or self.storage.delete(key):
                self.record("evaluation", key, size)

    def read_manifests(self) -> list[Manifest] | None:
        """Return the manifests of all retained revisions; None if one is unreadable."""
        manifests: list[Manifest] = []
        unreadable = False
        for directory in self.model_directories():
            for number in revision_numbers(self.storage, directory):
                revision = f"{directory}/{number}"
                try:
                    if revision not in self.removed_directories:
                        manifests.append(read_manifest(self.storage, f"{revision}/{MANIFEST}"))
                except Corrupt as error:
                    if self.storage.exists(revision):  # otherwise a concurrent run deleted it
                        unreadable = True
                        self.refused.append(f"{error}: no shard, image or backbone was deleted")
        return None if unreadable else manifests

    def retained_blobs(
        self,
        found: list[Current],
        sets: list[EvaluationSet],
        old_shards: Collection[str],
        pending: frozenset[str] | None,
    ) -> dict[BlobKind, set[str]]:
        """Return the digests to retain by kind; all shards and images if ``pending`` is unknown."""
        backbones = self.with_twins({current.backbone for current in found} | self.added())
        if pending is None:
            stored = {kind: set(self.repository.stored(kind)) for kind in KINDS}
            return {**stored, "backbones": backbones}
        shards = {ref.digest for current in found for ref in current.exemplars}
        shards |= {ref.digest for each in sets for own in each.embedded for ref in own.shards}
        images = set(pending) | {image.content for each in sets for image in each.images}
        for digest in sorted(shards | self.repository.stored("exemplars").keys()):
            retained = digest in shards or digest not in old_shards
            if not retained and not pending:
                continue
            try:
                contents = {row.tobytes().hex() for row in self.repository.shard(digest).contents}
            except Corrupt as error:
                if digest in shards:
                    self.refused.append(f"{error}: no image was deleted")
                    images |= self.repository.stored("images").keys()
            else:
                if retained or not pending.isdisjoint(contents):
                    shards.add(digest)
                    images |= contents
        return {
            "backbones": backbones,
            "exemplars": shards,
            "images": images,
        }

    def added(self) -> set[str]:
        """Return the backbones that were added by name; all stored ones if that is unknown."""
        try:
            return set(self.repository.added_backbones().values())
        except Corrupt as error:
            self.refused.append(f"{error}: no backbone was deleted")
            return set(self.repository.stored("backbones"))

    def with_twins(self, backbones: set[str]) -> set[str]:
        """Return backbones with their fp32 twins; all stored ones if a twin is unknown."""
        found = set(backbones)
        for digest in sorted(backbones & self.repository.stored("backbones").keys()):
            try:
                twin = self.repository.backbone_info(digest).twin
            except Corrupt as error:
                self.refused.append(f"{error}: no backbone was deleted")
                found |= self.repository.stored("backbones").keys()
            else:
                found |= {twin} if twin is not None else set()
        return found

    def remove_blob(self, kind: BlobKind, digest: str, entry: Entry) -> None:
        """Delete a blob unless a writer refreshed it after ``entry`` was read."""
        key = self.repository.key(kind, digest)
        if self.dry_run or self.storage.delete_blob(key, entry.time_ns):
            self.record(_SINGULAR[kind], key, entry.size)

    def remove_abandoned(self, age: float) -> None:
        """Delete what crashed writers left more than ``age`` seconds ago."""
        try:
            abandoned = self.storage.abandoned(age=age)
        except ForeignName as error:
            self.refused.append(f"{error}: nothing that crashes left was deleted")
            return
        for key, entry in abandoned.items():
            if self.dry_run or self.storage.delete_abandoned(key, age=age):
                self.record("temporary", key, entry.size)

    def record(self, kind: RemovedKind, key: str, size: int) -> None:
        """Add a deletion to the result."""
        self.removed.append(Removed(kind=kind, path=key, size=size))


def _retained_revisions(repository: Repository, model: str, keep: int) -> set[int]:
    """Return the serving, the pinned and the ``keep`` newest revisions. Raises Corrupt."""
    retained = set(repository.revisions(model)[-keep:])
    with contextlib.suppress(NotFound):  # the model does not serve yet
        state = repository.serving_state(model)
        retained |= {state.revision, *state.pinned}
    return retained
