"""Repository: directory of all bundles, with atomic publishing and the serving pointers.

    backbones/<sha256>/backbone.onnx (of embeddings by clients space.json), backbone.json
    backbones/names.json
    exemplars/<sha256>.npz
    images/<sha256>
    models/<model>/<revision>/manifest.json, manifest.sig, head.onnx, metrics.json, examples.npz,
        report.html
    models/<model>/serving.json, draft.json, review.json
    models/<model>/review/<sha256>.npz, .claim, .gone
    models/<model>/evaluations/<name>/set.json, <revision>.json
    models/.deleted-<model>/...

All files except names.json, serving.json, draft.json, set.json, review.json and claims are
immutable. Files that a manifest refers to are verified against their sha256 when read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from topwork.bundle import candidates, examples, files
from topwork.bundle.blobs import KINDS
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.draft import Current
from topwork.bundle.examples import ExampleIndex
from topwork.bundle.manifest import NEWEST_SCHEMA, SCHEMA, Manifest, check_may_serve
from topwork.bundle.metrics import Metrics
from topwork.bundle.model_directories import ModelDirectories
from topwork.bundle.names import is_model
from topwork.bundle.serving import Move, ServingState
from topwork.bundle.signing import signatures
from topwork.errors import Corrupt, NotFound

_REVISION = re.compile(r"[1-9][0-9]{0,17}")


class Repository(ModelDirectories):
    """Repository on a file system, for concurrent readers and writers in any process."""

    def models(self) -> list[str]:
        """Return the sorted names of all models that have a serving revision.

        Ignores directories without a valid model name, such as a manual copy.
        """
        names = (path.parent.name for path in (self.root / "models").glob("*/serving.json"))
        return sorted(name for name in names if is_model(name))

    def revisions(self, model: str) -> list[int]:
        """Return the numbers of all published revisions, oldest first. Raises NotFound."""
        directory = self._existing(model)
        return [int(path.name) for path in revision_directories(directory)]

    def serving(self, model: str) -> int:
        """Return the number of the serving revision. Raises NotFound, Corrupt."""
        return self.serving_state(model).revision

    def serving_state(self, model: str) -> ServingState:
        """Return serving revision, pinned revisions and history. Raises NotFound, Corrupt."""
        path = self.serving_file(model)
        if not path.exists():
            raise self._not_found(model)
        return from_json(files.read(path), ServingState, name=files.short_path(path))

    def current(self, model: str) -> Current:
        """Return the manifest of the serving revision, or the draft of a model without one.

        Raises NotFound, Corrupt.
        """
        try:
            return self.manifest(model, self.serving(model))
        except NotFound:
            if self.serving_file(model).exists():
                raise
        try:
            return self.draft(model)
        except NotFound:
            if self.serving_file(model).exists():  # it began to serve meanwhile
                return self.current(model)
            raise self._not_found(model) from None

    def was_moved_by(self, model: str, operation: str, revision: int) -> bool:
        """Return True if ``operation`` moved the model's serving pointer to ``revision``.

        Revision 0: if it changed the model's draft.
        """
        if not revision:
            with contextlib.suppress(NotFound):
                return operation in self.draft(model).operations
            return False
        return self.serving_file(model).exists() and self.serving_state(model).was_moved_by(
            operation, revision
        )

    def set_serving(
        self,
        model: str,
        revision: int,
        *,
        why: str,
        operation: str = "",
        parent: int | None = None,
    ) -> int:
        """Move the serving pointer to ``revision`` atomically; return the serving revision.

        With ``parent``, moves the pointer only if ``parent`` serves; 0: if none does. Idempotent
        per operation: a retry after a crash does not undo a later move. Raises NotFound if the
        revision is not published, NotReady if the gate rejected it.
        """
        with self.locked(model):
            check_may_serve(self.manifest(model, revision))
            try:
                state = self.serving_state(model)
            except NotFound:
                if parent:
                    raise
                state = ServingState(revision=0)
            if revision == state.revision or (
                operation and state.was_moved_by(operation, revision)
            ):
                return state.revision
            if parent not in {None, state.revision}:
                return state.revision
            move = Move(
                revision=revision,
                previous=state.revision,
                why=why,
                operation=operation,
                time=datetime.now(UTC),
            )
            files.write_file(self.serving_file(model), to_json(state.moved(move)))
        return revision

    def pin(self, model: str, revision: int, *, pinned: bool) -> ServingState:
        """Pin or unpin a revision and return the new state. Raises NotFound."""
        with self.locked(model):
            state = self.serving_state(model)
            if pinned or revision not in state.pinned:
                self.manifest(model, revision)
            others = set(state.pinned) - {revision}
            after = replace(state, pinned=tuple(sorted(others | {revision} if pinned else others)))
            if after != state:
                files.write_file(self.serving_file(model), to_json(after))
        return after

    def manifest(self, model: str, revision: int) -> Manifest:
        """Return a revision's manifest, with verified signatures. Raises NotFound, Corrupt."""
        path = files.existing(
            self._existing(model) / str(revision) / "manifest.json",
            kind="revision",
            name=f"models/{model}/revisions/{revision}",
        )
        content = files.read(path)
        self._signing.check(path.parent, content)
        manifest = _parse_manifest(content, path)
        if (manifest.model, manifest.revision) != (model, revision):
            raise Corrupt(
                f"{files.short_path(path)} is for {manifest.model} revision {manifest.revision}"
            )
        return manifest

    def head(self, manifest: Manifest) -> bytes:
        """Return a revision's head.onnx. Raises Corrupt."""
        return files.read_verified(self._revision(manifest) / "head.onnx", manifest.head)

    def metrics(self, manifest: Manifest) -> Metrics:
        """Return a revision's metrics. Raises Corrupt."""
        path = self._revision(manifest) / "metrics.json"
        return from_json(
            files.read_verified(path, manifest.metrics), Metrics, name=files.short_path(path)
        )

    def report(self, manifest: Manifest) -> bytes:
        """Return a revision's report.html. Raises Corrupt."""
        return files.read_verified(self.report_file(manifest), manifest.report)

    def examples(self, manifest: Manifest) -> ExampleIndex:
        """Return the index of a revision's examples. Raises Corrupt.

        It has no scores if an earlier release published the revision, which stored no index.
        """
        if manifest.examples is None:
            return examples.index_of_shards(self.shards(manifest.exemplars))
        content = files.read_verified(self._revision(manifest) / examples.FILE, manifest.examples)
        return examples.from_bytes(content, manifest.labels, len(manifest.exemplars))

    def report_file(self, manifest: Manifest) -> Path:
        """Return the path of a revision's report.html, to open it in a browser."""
        return self._revision(manifest) / "report.html"

    def publish(
        self,
        draft: Manifest,
        *,
        head: bytes,
        metrics: Metrics,
        report: Callable[[Manifest], bytes],
        index: ExampleIndex | None = None,
    ) -> Manifest:
        """Publish the next revision of ``draft.model`` atomically and return its manifest.

        Fills in the revision, file digests and time of ``draft``; ``report`` gets the manifest
        before the report's own digest is known. Does not serve the revision: see ``set_serving``.
        Raises Corrupt if the backbone or a shard is not stored, NotFound if the model of a change
        was deleted, AlreadyExists if a deleted model has the name of a new one.
        """
        parent = self._model(draft.model)
        if not draft.operation:  # a change would make a deleted model again
            self.check_not_deleted(draft.model)
            parent.mkdir(parents=True, exist_ok=True)
        metrics_json = to_json(metrics)
        index_file = None if index is None else examples.to_bytes(index)
        while True:
            manifest = replace(
                draft,
                revision=max(self.revisions(draft.model), default=0) + 1,
                head=files.sha256(head),
                metrics=files.sha256(metrics_json),
                examples=None if index_file is None else files.sha256(index_file),
                created=datetime.now(UTC),
            )
            page = report(manifest)
            manifest = replace(manifest, report=files.sha256(page))
            try:
                with (
                    self.locked(draft.model),
                    files.new_directory(parent / str(manifest.revision)) as directory,
                ):
                    (directory / "head.onnx").write_bytes(head)
                    (directory / "metrics.json").write_bytes(metrics_json)
                    (directory / "report.html").write_bytes(page)
                    if index_file is not None:
                        (directory / examples.FILE).write_bytes(index_file)
                    content = to_json(manifest)
                    (directory / "manifest.json").write_bytes(content)
                    signature = self.sign(content)
                    if signature is not None:
                        (directory / signatures.FILE).write_bytes(signature)
                    self._refresh_references(manifest)
            except FileExistsError:
                continue  # another writer took the number
            return manifest

    def find(self, model: str, matches: Callable[[Manifest], bool]) -> Manifest | None:
        """Return the newest readable revision that ``matches``, or None."""
        for revision in reversed(self.revisions(model)):
            with contextlib.suppress(Corrupt, NotFound):  # or deleted meanwhile
                manifest = self.manifest(model, revision)
                if matches(manifest):
                    return manifest
        return None

    def abandoned(self, *, age: float = files.ABANDONED_AFTER) -> list[Path]:
        """Return temporary names that crashed writers left more than ``age`` seconds ago."""
        directories = self._writable_directories()
        return [path for directory in directories for path in files.abandoned(directory, age=age)]

    def sweep(self) -> list[Path]:
        """Delete abandoned temporary names and return their paths."""
        directories = self._writable_directories()
        return [path for directory in directories for path in files.sweep(directory)]

    def _writable_directories(self) -> list[Path]:
        models = [path for path in (self.root / "models").glob("*") if path.is_dir()]
        names = ("checkpoints", "models", *KINDS)
        reviews = [path / candidates.DIRECTORY for path in models]
        sets = [path for model in models for path in model.glob("evaluations/**/") if path.is_dir()]
        names_of = (self.root / name for name in names)
        return [self.root, *names_of, *models, *reviews, *sets]

    def _revision(self, manifest: Manifest) -> Path:
        return self._model(manifest.model) / str(manifest.revision)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at ``path`` without verifying signatures. Raises Corrupt."""
    return _parse_manifest(files.read(path), path)


def _parse_manifest(content: bytes, path: Path) -> Manifest:
    schema = _schema_number(content)
    try:
        manifest = from_json(content, Manifest, name=files.short_path(path))
    except Corrupt:
        if schema in {SCHEMA, NEWEST_SCHEMA}:
            raise
    else:
        if schema <= NEWEST_SCHEMA:
            return manifest
    raise Corrupt(
        f"{files.short_path(path)} has schema {schema}; "
        f"this software reads {SCHEMA} and {NEWEST_SCHEMA}"
    )


def _schema_number(content: bytes) -> int:
    """Return the schema number of a manifest of any schema; SCHEMA if it has none."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(content)
        if isinstance(document, dict) and isinstance(document.get("schema"), int):
            return int(document["schema"])
    return SCHEMA


def revision_directories(model: Path) -> list[Path]:
    """Return the directories of all published revisions in a model's directory, oldest first."""
    directories = (path for path in model.glob("*") if _REVISION.fullmatch(path.name))
    return sorted(directories, key=lambda path: int(path.name))
