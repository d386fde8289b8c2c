"""Integrity check of a repository: every digest, reference and signature."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from topwork.bundle import candidates, draft, files, review_policy
from topwork.bundle.blobs import KINDS, NAMES, BlobKind
from topwork.bundle.draft import Current, Draft
from topwork.bundle.evaluation_sets import DIRECTORY as SETS
from topwork.bundle.evaluation_sets import FILE as SET
from topwork.bundle.evaluation_sets import (
    EvaluationSet,
    read_result,
    read_set,
    result_sizes,
    set_names,
)
from topwork.bundle.exemplars import data_digest
from topwork.bundle.manifest import Manifest, check_may_serve
from topwork.bundle.model_directories import MODELS, read_policy
from topwork.bundle.names import is_model
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.signing import signatures
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.bundle.storage.storage import HIDDEN, Entry, ForeignName
from topwork.bundle.store import MANIFEST, Repository, read_manifest, revision_numbers
from topwork.errors import Corrupt, NotFound, NotReady

OnProgress = Callable[[int, int], None]
"""Callback with the number of files checked so far and the total."""

_NAMES: dict[BlobKind, str] = {"backbones": "backbones", "exemplars": "shards", "images": "images"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Integrity error, or a note, such as orphaned files."""

    severity: Literal["error", "note"]
    path: str
    """Relative to the repository's root."""
    text: str


def check(
    repository: Repository,
    *,
    signing: Signing = UNSIGNED,
    on_progress: OnProgress = lambda _done, _total: None,
) -> list[Problem]:
    """Verify all digests, references and signatures, and return the problems, errors first.

    ``repository`` must not verify signatures itself; ``signing`` has the trusted keys. Changes and
    locks nothing, so it can run concurrently with servers, workers and fits. An image that a shard
    refers to may be missing: fit stores no images.
    """
    problems = _Run(repository, signing, on_progress).problems
    return sorted(problems, key=lambda problem: problem.severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShardSummary:
    """Digests and embedding width of a valid shard."""

    digests: frozenset[bytes]
    contents: frozenset[str]
    width: int


class _Run:
    """One run of ``check``."""

    def __init__(self, repository: Repository, signing: Signing, on_progress: OnProgress) -> None:
        self.problems: list[Problem] = []
        self._repository = repository
        self._signing = signing
        self._widths: dict[str, int] = {}  # embedding widths of valid backbones
        self._twins: dict[str, str] = {}  # fp32 twins of valid backbones
        self._added: set[str] = set()  # backbones that have a name
        self._shards: dict[str, _ShardSummary] = {}
        # List revisions before blobs: all blobs of a listed revision are stored already.
        self._storage = storage = repository.storage
        models = [f"{MODELS}/{name}" for name in storage.directories(MODELS)]
        revisions = {model: revision_numbers(storage, model) for model in models}
        self._stored = {kind: repository.stored(kind) for kind in KINDS}
        total = sum(map(len, [*revisions.values(), *self._stored.values()]))
        done = 0
        checks = {
            "backbones": self._check_backbone,
            "exemplars": self._check_shard,
            "images": self._check_image,
        }
        for kind in KINDS:
            for digest in sorted(self._stored[kind]):
                key = repository.key(kind, digest)
                with self._problem_at(key, of=key):
                    checks[kind](digest, key)
                on_progress(done := done + 1, total)
        self._check_names()
        all_manifests: list[Current | None] = []
        for model, numbers in revisions.items():
            manifests = {}
            for number in numbers:
                manifests[number] = self._check_revision(model, number)
                on_progress(done := done + 1, total)
            self._check_serving(model, manifests)
            self._check_review(model)
            all_manifests += manifests.values()
            if self._is_draft(model):
                all_manifests.append(self._check_draft(model))
        sets = [
            self._check_set(f"{model}/{SETS}/{name}")
            for model in models
            for name in set_names(storage, f"{model}/{SETS}")
        ]
        self._note_orphans(all_manifests, sets)
        self._note_unexpected()

    def _check_backbone(self, digest: str, key: str) -> None:
        with self._problem_at(self._repository.backbone_key(digest), of=key):
            self._repository.backbone_model(digest)
        with self._problem_at(f"{key}/backbone.json", of=key):
            info = self._repository.backbone_info(digest)
            if info.digest != digest:
                raise Corrupt(f"it describes the backbone {info.digest}")
            self._widths[digest] = info.width
            if info.twin is not None:
                self._twins[digest] = info.twin
                if info.twin not in self._stored["backbones"]:
                    text = f"its fp32 twin {info.twin} is not stored, and cannot replace it"
                    self._add("note", f"{key}/backbone.json", text)
            if info.expected is not None:
                try:
                    info.expected.rows(info.width)
                except ValueError as error:
                    raise Corrupt(f"its expected embeddings cannot be used: {error}") from error

    def _check_names(self) -> None:
        with self._problem_at(NAMES, of=NAMES):
            for name, digest in self._repository.added_backbones().items():
                self._added.add(digest)
                if digest not in self._stored["backbones"]:
                    text = f"the backbone {name!r} has the digest {digest}, which is not stored"
                    self._add("error", NAMES, text)

    def _check_shard(self, digest: str, key: str) -> None:
        shard = self._repository.shard(digest)
        bad = np.flatnonzero(~np.isfinite(shard.embeddings).all(axis=1))
        if len(bad):
            self._add("error", key, f"{len(bad)} embeddings are not finite, first row {bad[0]}")
        self._shards[digest] = _ShardSummary(
            digests=frozenset(row.tobytes() for row in shard.digests),
            contents=frozenset(row.tobytes().hex() for row in shard.contents),
            width=shard.embeddings.shape[1],
        )

    def _check_image(self, digest: str, key: str) -> None:
        with self._storage.open(key) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise Corrupt(f"its sha256 is {found}: it was changed")

    def _check_revision(self, model: str, number: int) -> Manifest | None:
        """Check a revision in the directory of a model and return it; None if it is unreadable."""
        directory = f"{model}/{number}"
        key = f"{directory}/{MANIFEST}"
        manifest = None
        with self._problem_at(key, of=directory):
            name = model.removeprefix(f"{MODELS}/")
            if not is_model(name):
                return read_manifest(self._storage, key)
            manifest = self._repository.manifest(name, number)
        if manifest is None:
            return None
        with self._problem_at(f"{directory}/{signatures.FILE}", of=directory):
            self._signing.check(self._storage, directory, self._storage.read(key))
        for name, read in (
            ("head.onnx", self._repository.head),
            ("metrics.json", self._repository.metrics),
            ("report.html", self._repository.report),
            ("examples.npz", self._check_examples),
        ):
            with self._problem_at(f"{directory}/{name}", of=directory):
                read(manifest)
        with self._problem_at(key, of=directory):
            self._check_references(manifest)
        return manifest

    def _check_examples(self, manifest: Manifest) -> None:
        """Raise Corrupt if the index is damaged or does not have the revision's examples."""
        if manifest.examples is not None:
            index = self._repository.examples(manifest)
            labels = [index.labels[target] for target in index.targets]
            pairs = zip((row.tobytes() for row in index.digests), labels, strict=True)
            if data_digest(pairs) != manifest.data_digest:
                raise Corrupt("its examples do not match the data_digest of the manifest")

    def _check_review(self, model: str) -> None:
        """Check the review policy and the candidates of a model."""
        with self._problem_at(f"{model}/{review_policy.FILE}", of=model):
            read_policy(self._storage, model)
        directory = f"{model}/{candidates.DIRECTORY}"
        for digest in sorted(candidates.list_directory(self._storage, directory).candidates):
            key = f"{directory}/{digest}.npz"
            with self._problem_at(key, of=key):
                found, image = candidates.read_with_image(self._storage, key)
                if files.sha256(image) != found.record.content:
                    raise Corrupt("its image was changed")

    def _is_draft(self, model: str) -> bool:
        exists = self._storage.exists
        return exists(f"{model}/{draft.FILE}") and not exists(f"{model}/{SERVING}")

    def _check_draft(self, model: str) -> Draft | None:
        """Check the draft of a model without serving revision and return it; None if unreadable."""
        key = f"{model}/{draft.FILE}"
        found = None
        with self._problem_at(key, of=key):
            found = draft.from_bytes(self._storage.read(key), self._signing, name=key)
            self._check_stored(found)
            self._check_widths(found)
        return found

    def _check_set(self, directory: str) -> EvaluationSet | None:
        """Check an evaluation set and its results; return it, or None if it is unreadable."""
        found = None
        with self._problem_at(f"{directory}/{SET}", of=directory):
            found, _ = read_set(self._storage, directory)
            for embedded in found.embedded:
                for ref in embedded.shards:
                    if ref.digest not in self._stored["exemplars"]:
                        raise Corrupt(f"it refers to the shard {ref.digest}, which is not stored")
                    shard = self._shards.get(ref.digest)
                    width = self._widths.get(embedded.backbone)
                    if shard is not None and width not in {None, shard.width}:
                        raise Corrupt(
                            f"its shard {ref.digest} has embeddings of width {shard.width}, but "
                            f"its backbone has width {width}"
                        )
            lost = {image.content for image in found.images} - self._stored["images"].keys()
            if lost:
                images = "1 image of it is" if len(lost) == 1 else f"{len(lost)} images of it are"
                text = f"{images} not stored: it cannot judge a revision of another backbone"
                self._add("note", f"{directory}/{SET}", text)
        for revision in result_sizes(self._storage, directory):
            key = f"{directory}/{revision}.json"
            with self._problem_at(key, of=key):
                read_result(self._storage, key)
        return found

    def _check_stored(self, current: Current) -> None:
        """Raise Corrupt if a blob that a revision or draft refers to is not stored."""
        missing = [
            *({current.backbone} - self._stored["backbones"].keys()),
            *sorted({ref.digest for ref in current.exemplars} - self._stored["exemplars"].keys()),
        ]
        if missing:
            raise Corrupt(f"it refers to blobs that are not stored: {', '.join(missing)}")
        self._repository.backbone(current)

    def _check_widths(self, current: Current) -> None:
        """Raise Corrupt if the shards are not embeddings of the backbone."""
        width = self._widths.get(current.backbone)
        for ref in current.exemplars:
            if ref.digest in self._shards:  # a damaged shard is already reported
                shard_width = self._shards[ref.digest].width
                if width not in {None, shard_width}:
                    raise Corrupt(
                        f"its shard {ref.digest} has embeddings of width {shard_width}, "
                        f"but its backbone has width {width}"
                    )

    def _check_references(self, manifest: Manifest) -> None:
        """Raise Corrupt if a manifest is inconsistent with the blobs that it refers to."""
        refs = manifest.exemplars
        self._check_stored(manifest)
        labels = tuple(sorted({ref.label for ref in refs}))
        if labels != manifest.labels:
            raise Corrupt(f"its labels are {manifest.labels}, but its shards have {labels}")
        if not all(ref.digest in self._shards for ref in refs):
            return  # a damaged shard is already reported
        self._check_widths(manifest)
        pairs = {(image, ref.label) for ref in refs for image in self._shards[ref.digest].digests}
        if len(pairs) != manifest.images:
            raise Corrupt(f"it has images={manifest.images}, but its shards have {len(pairs)}")
        if data_digest(sorted(pairs)) != manifest.data_digest:
            raise Corrupt("its shards do not match its data_digest")

    def _check_serving(self, directory: str, manifests: dict[int, Manifest | None]) -> None:
        """Check the serving and the pinned revisions of a model."""
        model = directory.removeprefix(f"{MODELS}/")
        if model.startswith(HIDDEN):
            entry = self._storage.entry(directory)
            text = f"the model was deleted: {_total([entry] if entry else [], 'directory')}"
            self._add("note", directory, f"{text}; topwork gc deletes it when it is old")
            return
        if not is_model(model):
            self._add("note", directory, "the name is not a valid model name, so it cannot serve")
            return
        key = f"{directory}/{SERVING}"
        if not self._storage.exists(key):
            if manifests and not self._is_draft(directory):
                self._add("note", directory, "no revision serves")
            return
        with self._problem_at(key, of=directory):
            state = self._repository.serving_state(model)
            published = self._repository.revisions(model)
            for status, revision in (
                ("serving", state.revision),
                *(("pinned", revision) for revision in state.pinned),
            ):
                if revision not in published:
                    self._add("error", key, f"the {status} revision {revision} does not exist")
            serving = manifests.get(state.revision)
            if serving is not None:
                check_may_serve(serving)

    def _note_orphans(
        self, manifests: list[Current | None], sets: list[EvaluationSet | None]
    ) -> None:
        """Add one note per kind about orphaned blobs, if all references are known."""
        known = [manifest for manifest in manifests if manifest is not None]
        stored_sets = [stored for stored in sets if stored is not None]
        if len(known) != len(manifests) or len(stored_sets) != len(sets):
            return
        shards = {ref.digest for manifest in known for ref in manifest.exemplars}
        shards |= {
            ref.digest for each in stored_sets for own in each.embedded for ref in own.shards
        }
        backbones = {manifest.backbone for manifest in known} | self._added
        twins = {self._twins[digest] for digest in backbones & self._twins.keys()}
        if not shards <= self._shards.keys():
            return
        referred: dict[BlobKind, set[str]] = {
            "backbones": backbones | twins,
            "exemplars": shards,
            "images": {image for shard in shards for image in self._shards[shard].contents}
            | {image.content for each in stored_sets for image in each.images},
        }
        for kind, stored in self._stored.items():
            orphans = [entry for digest, entry in stored.items() if digest not in referred[kind]]
            if orphans:
                text = f"{_total(orphans, _NAMES[kind])} are orphaned: topwork gc deletes them"
                self._add("note", kind, f"{text} when they are old")

    def _note_unexpected(self) -> None:
        """Add notes about unexpected files and leftovers of crashes."""
        for kind in KINDS:
            expected = {
                self._repository.key(kind, digest) for digest in self._repository.stored(kind)
            }
            found = {f"{kind}/{name}": each for name, each in self._storage.refreshed(kind).items()}
            unexpected = {
                key: entry for key, entry in sorted(found.items()) if key not in {*expected, NAMES}
            }
            if unexpected:
                names = ", ".join(key.removeprefix(f"{kind}/") for key in [*unexpected][:3])
                text = f"unexpected: {_total([*unexpected.values()], 'files')}, such as {names}"
                self._add("note", kind, text)
        try:
            abandoned = [*self._storage.abandoned().values()]
        except ForeignName as error:
            self._add("note", "", f"{error}: what crashes left cannot be listed")
            return
        if abandoned:
            text = f"crashes left {_total(abandoned, 'temporary files')}: topwork gc deletes them"
            self._add("note", "", text)

    @contextmanager
    def _problem_at(self, key: str, *, of: str) -> Iterator[None]:
        """Report an error of the block as a problem, unless ``of`` was deleted meanwhile."""
        try:
            yield
        except (Corrupt, NotFound, NotReady, OSError) as error:
            if self._storage.exists(of):
                self._add("error", key, str(error))

    def _add(self, severity: Literal["error", "note"], key: str, text: str) -> None:
        self.problems.append(Problem(severity=severity, path=key or ".", text=text))


def _total(entries: list[Entry], noun: str) -> str:
    return f"{len(entries)} {noun} ({sum(entry.size for entry in entries)} bytes)"
