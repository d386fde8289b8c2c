"""Integrity check of a repository: every digest, reference and signature."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from topwork.bundle import files
from topwork.bundle.exemplars import data_digest
from topwork.bundle.manifest import Manifest, check_may_serve
from topwork.bundle.names import is_model
from topwork.bundle.signing import signatures
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.bundle.store import Repository, read_manifest, revision_directories
from topwork.bundle.stored import KINDS, BlobKind
from topwork.errors import Corrupt, NotFound, NotReady

OnProgress = Callable[[int, int], None]
"""Is told of things checked, and of all things to check."""

_NAMES: dict[BlobKind, str] = {"backbones": "backbones", "exemplars": "shards", "images": "images"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong (an error), or worth knowing (a note)."""

    severity: Literal["error", "note"]
    path: str
    """Below the repository's root."""
    text: str


def check(
    repository: Repository,
    *,
    signing: Signing = UNSIGNED,
    on_progress: OnProgress = lambda _done, _total: None,
) -> list[Problem]:
    """Verify every digest and every reference and return all that is wrong, errors first.

    And the signatures that ``signing`` asks for, which ``repository`` itself must not.
    Nothing is changed or locked, so it may run while others serve, fit and publish. An image that
    a shard names and that is not stored is no error: fit stores none.
    """
    return sorted(_Run(repository, signing, on_progress).problems, key=lambda one: one.severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What is remembered of a shard that is as it should be."""

    digests: frozenset[bytes]
    contents: frozenset[str]
    width: int


class _Run:
    """One run of ``check``."""

    def __init__(self, repository: Repository, signing: Signing, on_progress: OnProgress) -> None:
        self.problems: list[Problem] = []
        self._repository = repository
        self._signing = signing
        self._widths: dict[str, int] = {}  # of backbones that are as they should be
        self._shards: dict[str, _Facts] = {}
        # Revisions are listed first: what they refer to was stored before they were published.
        models = [path for path in sorted((repository.root / "models").glob("*")) if path.is_dir()]
        revisions = {model: revision_directories(model) for model in models}
        self._stored = {kind: repository.stored(kind) for kind in KINDS}
        total = sum(map(len, [*revisions.values(), *self._stored.values()]))
        done = 0
        checks = {
            "backbones": self._backbone,
            "exemplars": self._shard,
            "images": self._image,
        }
        for kind in KINDS:
            for digest, path in sorted(self._stored[kind].items()):
                with self._problem_at(path, of=path):
                    checks[kind](digest, path)
                on_progress(done := done + 1, total)
        referring: list[Manifest | None] = []
        for model, directories in revisions.items():
            manifests = {}
            for directory in directories:
                manifests[int(directory.name)] = self._revision(directory)
                on_progress(done := done + 1, total)
            self._model(model, manifests)
            referring += manifests.values()
        self._orphans(referring)
        self._rest()

    def _backbone(self, digest: str, path: Path) -> None:
        with self._problem_at(path / "backbone.onnx", of=path):
            self._repository.backbone_model(digest)
        with self._problem_at(path / "backbone.json", of=path):
            info = self._repository.backbone_info(digest)
            if info.digest != digest:
                raise Corrupt(f"it is about the backbone {info.digest}")
            self._widths[digest] = info.width

    def _shard(self, digest: str, path: Path) -> None:
        shard = self._repository.shard(digest)
        odd = np.flatnonzero(~np.isfinite(shard.embeddings).all(axis=1))
        if len(odd):
            self._add("error", path, f"{len(odd)} embeddings are not finite, first row {odd[0]}")
        self._shards[digest] = _Facts(
            digests=frozenset(row.tobytes() for row in shard.digests),
            contents=frozenset(row.tobytes().hex() for row in shard.contents),
            width=shard.embeddings.shape[1],
        )

    def _image(self, digest: str, path: Path) -> None:
        with files.open_file(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise Corrupt(f"its sha256 is {found}: it was changed")

    def _revision(self, directory: Path) -> Manifest | None:
        """Check a revision and return its manifest; None if it cannot be read."""
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
        ):
            with self._problem_at(directory / name, of=directory):
                read(manifest)
        with self._problem_at(path, of=directory):
            self._references(manifest)
        return manifest

    def _references(self, manifest: Manifest) -> None:
        """Raise Corrupt if what a manifest says does not agree with what it refers to."""
        refs = manifest.exemplars
        missing = [
            *({manifest.backbone} - self._stored["backbones"].keys()),
            *sorted({ref.digest for ref in refs} - self._stored["exemplars"].keys()),
        ]
        if missing:
            raise Corrupt(f"it refers to {', '.join(missing)}, which is not stored")
        self._repository.backbone(manifest)
        labels = tuple(sorted({ref.label for ref in refs}))
        if labels != manifest.labels:
            raise Corrupt(f"its labels are {manifest.labels} and those of its shards {labels}")
        if not all(ref.digest in self._shards for ref in refs):
            return  # a damaged shard is a problem of its own
        width = self._widths.get(manifest.backbone)
        for ref in refs:
            found = self._shards[ref.digest].width
            if width not in {None, found}:
                raise Corrupt(
                    f"its shard {ref.digest} has embeddings of {found} numbers, "
                    f"and its backbone makes {width}"
                )
        pairs = {(image, ref.label) for ref in refs for image in self._shards[ref.digest].digests}
        if len(pairs) != manifest.images:
            raise Corrupt(f"it says {manifest.images} images, and its shards have {len(pairs)}")
        if data_digest(sorted(pairs)) != manifest.data_digest:
            raise Corrupt("its shards have other images than those that it was learnt from")

    def _model(self, directory: Path, manifests: dict[int, Manifest | None]) -> None:
        """Check what serves and what is pinned."""
        model = directory.name
        if not is_model(model):
            self._add("note", directory, "it is no model's name: what is in it never serves")
            return
        path = self._repository.serving_file(model)
        if not path.exists():
            if manifests:
                self._add("note", directory, "it has revisions, and none of them serves")
            return
        with self._problem_at(path, of=directory):
            state = self._repository.serving_state(model)
            there = self._repository.revisions(model)
            for what, revision in (
                ("serves", state.revision),
                *(("is pinned", revision) for revision in state.pinned),
            ):
                if revision not in there:
                    self._add("error", path, f"revision {revision} {what}, and is not there")
            serving = manifests.get(state.revision)
            if serving is not None:
                check_may_serve(serving)

    def _orphans(self, manifests: list[Manifest | None]) -> None:
        """Note what nothing refers to, a kind at a time, if that can be known."""
        known = [manifest for manifest in manifests if manifest is not None]
        if len(known) != len(manifests):
            return
        shards = {ref.digest for manifest in known for ref in manifest.exemplars}
        if not shards <= self._shards.keys():
            return
        referred: dict[BlobKind, set[str]] = {
            "backbones": {manifest.backbone for manifest in known},
            "exemplars": shards,
            "images": {one for shard in shards for one in self._shards[shard].contents},
        }
        for kind, stored in self._stored.items():
            paths = [path for digest, path in stored.items() if digest not in referred[kind]]
            if paths:
                text = f"nothing refers to {_amount(paths, _NAMES[kind])}: topwork gc deletes them"
                self._add("note", self._repository.root / kind, f"{text} when they are old")

    def _rest(self) -> None:
        """Note what has no business there."""
        for kind in KINDS:
            directory = self._repository.root / kind
            odd = [
                path
                for path in sorted(directory.glob("*"))
                if path not in self._repository.stored(kind).values()
                and not path.name.startswith(files.TEMPORARY)
            ]
            if odd:
                names = ", ".join(path.name for path in odd[:3])
                self._add("note", directory, f"{_amount(odd, 'things')} are no {kind}: {names}")
        abandoned = self._repository.abandoned()
        if abandoned:
            text = f"crashes left {_amount(abandoned, 'temporary names')}: topwork gc deletes them"
            self._add("note", self._repository.root, text)

    @contextmanager
    def _problem_at(self, path: Path, *, of: Path) -> Iterator[None]:
        """Make what is raised in the block a problem and go on; if ``of`` is just deleted, none."""
        try:
            yield
        except (Corrupt, NotFound, NotReady, OSError) as error:
            if of.exists():
                self._add("error", path, str(error))

    def _add(self, severity: Literal["error", "note"], path: Path, text: str) -> None:
        below = str(path.relative_to(self._repository.root))
        self.problems.append(Problem(severity=severity, path=below, text=text))


def _amount(paths: list[Path], what: str) -> str:
    return f"{len(paths)} {what} ({sum(map(files.size, paths))} bytes)"
