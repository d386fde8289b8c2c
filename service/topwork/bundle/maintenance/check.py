"""Integrity check of a repository: every digest, reference and signature."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from topwork.bundle import candidates, draft, files, review_policy
from topwork.bundle.blobs import KINDS, BlobKind
from topwork.bundle.draft import Current, Draft
from topwork.bundle.evaluation_sets import FILE as SET
from topwork.bundle.evaluation_sets import (
    EvaluationSet,
    read_result,
    read_set,
    result_files,
    set_directories,
)
from topwork.bundle.exemplars import data_digest
from topwork.bundle.manifest import Manifest, check_may_serve
from topwork.bundle.model_directories import DELETED, read_policy
from topwork.bundle.names import is_model
from topwork.bundle.signing import signatures
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.bundle.store import Repository, read_manifest, revision_directories
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
        models = [
            path
            for path in sorted((repository.root / "models").glob("*"))
            if path.is_dir() and not path.name.startswith(files.TEMPORARY)
        ]
        revisions = {model: revision_directories(model) for model in models}
        self._stored = {kind: repository.stored(kind) for kind in KINDS}
        total = sum(map(len, [*revisions.values(), *self._stored.values()]))
        done = 0
        checks = {
            "backbones": self._check_backbone,
            "exemplars": self._check_shard,
            "images": self._check_image,
        }
        for kind in KINDS:
            for digest, path in sorted(self._stored[kind].items()):
                with self._problem_at(path, of=path):
                    checks[kind](digest, path)
                on_progress(done := done + 1, total)
        self._check_names()
        all_manifests: list[Current | None] = []
        for model, directories in revisions.items():
            manifests = {}
            for directory in directories:
                manifests[int(directory.name)] = self._check_revision(directory)
                on_progress(done := done + 1, total)
            self._check_serving(model, manifests)
            self._check_review(model)
            all_manifests += manifests.values()
            if self._is_draft(model):
                all_manifests.append(self._check_draft(model))
        sets = [
            self._check_set(directory) for path in models for directory in set_directories(path)
        ]
        self._note_orphans(all_manifests, sets)
        self._note_unexpected()

    def _check_backbone(self, digest: str, path: Path) -> None:
        with self._problem_at(self._repository.backbone_file(digest), of=path):
            self._repository.backbone_model(digest)
        with self._problem_at(path / "backbone.json", of=path):
            info = self._repository.backbone_info(digest)
            if info.digest != digest:
                raise Corrupt(f"it describes the backbone {info.digest}")
            self._widths[digest] = info.width
            if info.twin is not None:
                self._twins[digest] = info.twin
                if info.twin not in self._stored["backbones"]:
                    text = f"its fp32 twin {info.twin} is not stored, and cannot replace it"
                    self._add("note", path / "backbone.json", text)
            if info.expected is not None:
                try:
                    info.expected.rows(info.width)
                except ValueError as error:
                    raise Corrupt(f"its expected embeddings cannot be used: {error}") from error

    def _check_names(self) -> None:
        path = self._repository.names_file
        with self._problem_at(path, of=path):
            for name, digest in self._repository.added_backbones().items():
                self._added.add(digest)
                if digest not in self._stored["backbones"]:
                    text = f"the backbone {name!r} has the digest {digest}, which is not stored"
                    self._add("error", path, text)

    def _check_shard(self, digest: str, path: Path) -> None:
        shard = self._repository.shard(digest)
        bad = np.flatnonzero(~np.isfinite(shard.embeddings).all(axis=1))
        if len(bad):
            self._add("error", path, f"{len(bad)} embeddings are not finite, first row {bad[0]}")
        self._shards[digest] = _ShardSummary(
            digests=frozenset(row.tobytes() for row in shard.digests),
            contents=frozenset(row.tobytes().hex() for row in shard.contents),
            width=shard.embeddings.shape[1],
        )

    def _check_image(self, digest: str, path: Path) -> None:
        with files.open_file(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise Corrupt(f"its sha256 is {found}: it was changed")

    def _check_revision(self, directory: Path) -> Manifest | None:
        """Check a revision and return its manifest; None if it is unreadable."""
        model = directory.parent.name
        path = directory / "manifest.json"
        manifest = None
        with self._problem_at(path, of=directory):
            if not is_model(model):
                return read_manifest(path)
            manifest = self._repository.manifest(model, int(directory.name))
        if manifest is None:
            return None
        with self._problem_at(directory / signatures.FILE, of=directory):
            self._signing.check(directory, files.read(path))
        for name, read in (
            ("head.onnx", self._repository.head),
            ("metrics.json", self._repository.metrics),
            ("report.html", self._repository.report),
            ("examples.npz", self._check_examples),
        ):
            with self._problem_at(directory / name, of=directory):
                read(manifest)
        with self._problem_at(path, of=directory):
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

    def _check_review(self, model: Path) -> None:
        """Check the review policy and the candidates of a model."""
        with self._problem_at(model / review_policy.FILE, of=model):
            read_policy(model)
        directory = model / candidates.DIRECTORY
        for digest in sorted(candidates.list_directory(directory).candidates):
            path = directory / f"{digest}.npz"
            with self._problem_at(path, of=path):
                found, image = candidates.read_with_image(path)
                if files.sha256(image) != found.record.content:
                    raise Corrupt("its image was changed")

    def _is_draft(self, model: Path) -> bool:
        return (model / draft.FILE).exists() and not (model / "serving.json").exists()

    def _check_draft(self, model: Path) -> Draft | None:
        """Check the draft of a model without serving revision and return it; None if unreadable."""
        path = model / draft.FILE
        found = None
        with self._problem_at(path, of=path):
            found = draft.from_bytes(files.read(path), self._signing, name=files.short_path(path))
            self._check_stored(found)
            self._check_widths(found)
        return found

    def _check_set(self, directory: Path) -> EvaluationSet | None:
        """Check an evaluation set and its results; return it, or None if it is unreadable."""
        found = None
        with self._problem_at(directory / SET, of=directory):
            found = read_set(directory)
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
                self._add("note", directory / SET, text)
        for path in result_files(directory).values():
            with self._problem_at(path, of=path):
                read_result(path)
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

    def _check_serving(self, directory: Path, manifests: dict[int, Manifest | None]) -> None:
        """Check the serving and the pinned revisions of a model."""
        model = directory.name
        if model.startswith(DELETED):
            text = f"the model was deleted: {_total([directory], 'directory')}"
            self._add("note", directory, f"{text}; topwork gc deletes it when it is old")
            return
        if not is_model(model):
            self._add("note", directory, "the name is not a valid model name, so it cannot serve")
            return
        path = self._repository.serving_file(model)
        if not path.exists():
            if manifests and not self._is_draft(directory):
                self._add("note", directory, "no revision serves")
            return
        with self._problem_at(path, of=directory):
            state = self._repository.serving_state(model)
            published = self._repository.revisions(model)
            for status, revision in (
                ("serving", state.revision),
                *(("pinned", revision) for revision in state.pinned),
            ):
                if revision not in published:
                    self._add("error", path, f"the {status} revision {revision} does not exist")
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
            paths = [path for digest, path in stored.items() if digest not in referred[kind]]
            if paths:
                text = f"{_total(paths, _NAMES[kind])} are orphaned: topwork gc deletes them"
                self._add("note", self._repository.root / kind, f"{text} when they are old")

    def _note_unexpected(self) -> None:
        """Add notes about unexpected files and leftovers of crashes."""
        for kind in KINDS:
            directory = self._repository.root / kind
            expected = {*self._repository.stored(kind).values(), self._repository.names_file}
            unexpected = [
                path
                for path in sorted(directory.glob("*"))
                if path not in expected and not path.name.startswith(files.TEMPORARY)
            ]
            if unexpected:
                names = ", ".join(path.name for path in unexpected[:3])
                text = f"unexpected: {_total(unexpected, 'files')}, such as {names}"
                self._add("note", directory, text)
        abandoned = self._repository.abandoned()
        if abandoned:
            text = f"crashes left {_total(abandoned, 'temporary files')}: topwork gc deletes them"
            self._add("note", self._repository.root, text)

    @contextmanager
    def _problem_at(self, path: Path, *, of: Path) -> Iterator[None]:
        """Report an error of the block as a problem, unless ``of`` was deleted meanwhile."""
        try:
            yield
        except (Corrupt, NotFound, NotReady, OSError) as error:
            if of.exists():
                self._add("error", path, str(error))

    def _add(self, severity: Literal["error", "note"], path: Path, text: str) -> None:
        relative = str(path.relative_to(self._repository.root))
        self.problems.append(Problem(severity=severity, path=relative, text=text))


def _total(paths: list[Path], noun: str) -> str:
    return f"{len(paths)} {noun} ({sum(map(files.size, paths))} bytes)"
