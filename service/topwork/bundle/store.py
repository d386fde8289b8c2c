"""Repository: all bundles of a storage, with atomic publishing and the serving pointers.

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
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from topwork.bundle import examples, files
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.draft import Current
from topwork.bundle.examples import ExampleIndex
from topwork.bundle.files import Absent
from topwork.bundle.manifest import NEWEST_SCHEMA, SCHEMA, Manifest, check_may_serve
from topwork.bundle.metrics import Metrics
from topwork.bundle.model_directories import MODELS, ModelDirectories
from topwork.bundle.names import check_model
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.serving import Move, ServingState
from topwork.bundle.signing import signatures
from topwork.bundle.storage.storage import ABSENT, Storage, Tag
from topwork.errors import Corrupt, NotFound

MANIFEST = "manifest.json"
"""File name, in the directory of a revision: the last file that is written."""

_REVISION = re.compile(r"[1-9][0-9]{0,17}")


class Repository(ModelDirectories):
    """Repository in a storage, for concurrent readers and writers in any process."""

    def models(self) -> list[str]:
        """Return the sorted names of all models that have a serving revision.

        Ignores directories without a valid model name, such as a manual copy.
        """
        with contextlib.suppress(FileNotFoundError):
            return sorted(self.storage.stamps([SERVING], ()))
        return []

    def revisions(self, model: str) -> list[int]:
        """Return the numbers of all published revisions, oldest first. Raises NotFound."""
        return revision_numbers(self.storage, self._existing(model))

    def serving(self, model: str) -> int:
        """Return the number of the serving revision. Raises NotFound, Corrupt."""
        return self.serving_state(model).revision

    def serving_state(self, model: str) -> ServingState:
        """Return serving revision, pinned revisions and history. Raises NotFound, Corrupt."""
        key = self.serving_key(model)
        try:
            content = self.storage.read(key)
        except Absent:
            raise self._not_found(model) from None
        return from_json(content, ServingState, name=key)

    def _tagged_state(self, model: str) -> tuple[ServingState, Tag]:
        key = self.serving_key(model)
        if not self.storage.exists(key):
            raise self._not_found(model)
        content, tag = self.storage.read_tagged(key)
        return from_json(content, ServingState, name=key), tag

    def current(self, model: str) -> Current:
        """Return the manifest of the serving revision, or the draft of a model without one.

        Raises NotFound, Corrupt.
        """
        try:
            return self.manifest(model, self.serving(model))
        except NotFound:
            if self.storage.exists(self.serving_key(model)):
                raise
        try:
            return self.draft(model)
        except NotFound:
            if self.storage.exists(self.serving_key(model)):  # it began to serve meanwhile
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
        with contextlib.suppress(NotFound):
            return self.serving_state(model).was_moved_by(operation, revision)
        return False

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
                state, tag = self._tagged_state(model)
            except NotFound:
                if parent:
                    raise
                state, tag = ServingState(revision=0), ABSENT
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
            after = to_json(state.moved(move))
            self.storage.write(self.serving_key(model), after, expected=tag)
        return revision

    def pin(self, model: str, revision: int, *, pinned: bool) -> ServingState:
        """Pin or unpin a revision and return the new state. Raises NotFound."""
        with self.locked(model):
            state, tag = self._tagged_state(model)
            if pinned or revision not in state.pinned:
                self.manifest(model, revision)
            others = set(state.pinned) - {revision}
            after = replace(state, pinned=tuple(sorted(others | {revision} if pinned else others)))
            if after != state:
                self.storage.write(self.serving_key(model), to_json(after), expected=tag)
        return after

    def manifest(self, model: str, revision: int) -> Manifest:
        """Return a revision's manifest, with verified signatures. Raises NotFound, Corrupt."""
        directory = f"{self._existing(model)}/{revision}"
        key = f"{directory}/{MANIFEST}"
        try:
            content = self.storage.read(key)
        except Absent:
            name = f"models/{model}/revisions/{revision}"
            text = f"there is no revision {name!r}"
            raise NotFound(text, kind="revision", resource=name) from None
        self._signing.check(self.storage, directory, content)
        manifest = _parse_manifest(content, key)
        if (manifest.model, manifest.revision) != (model, revision):
            raise Corrupt(f"{key} is for {manifest.model} revision {manifest.revision}")
        return manifest

    def head(self, manifest: Manifest) -> bytes:
        """Return a revision's head.onnx. Raises Corrupt."""
        return self.storage.read_verified(f"{revision_key(manifest)}/head.onnx", manifest.head)

    def metrics(self, manifest: Manifest) -> Metrics:
        """Return a revision's metrics. Raises Corrupt."""
        key = f"{revision_key(manifest)}/metrics.json"
        return from_json(self.storage.read_verified(key, manifest.metrics), Metrics, name=key)

    def report(self, manifest: Manifest) -> bytes:
        """Return a revision's report.html. Raises Corrupt."""
        return self.storage.read_verified(report_key(manifest), manifest.report)

    def examples(self, manifest: Manifest) -> ExampleIndex:
        """Return the index of a revision's examples. Raises Corrupt.

        It has no scores if an earlier release published the revision, which stored no index.
        """
        if manifest.examples is None:
            return examples.index_of_shards(self.shards(manifest.exemplars))
        key = f"{revision_key(manifest)}/{examples.FILE}"
        content = self.storage.read_verified(key, manifest.examples)
        return examples.from_bytes(content, manifest.labels, len(manifest.exemplars))

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
        if not draft.operation:  # a change would make a deleted model again
            self.check_not_deleted(draft.model)
            self.storage.make_directory(self._model(draft.model))
        metrics_json = to_json(metrics)
        index_file = None if index is None else examples.to_bytes(index)
        taken = 0
        while True:
            manifest = replace(
                draft,
                revision=max([taken, *self.revisions(draft.model)]) + 1,
                head=files.sha256(head),
                metrics=files.sha256(metrics_json),
                examples=None if index_file is None else files.sha256(index_file),
                created=datetime.now(UTC),
            )
            page = report(manifest)
            manifest = replace(manifest, report=files.sha256(page))
            contents = {"head.onnx": head, "metrics.json": metrics_json, "report.html": page}
            if index_file is not None:
                contents[examples.FILE] = index_file
            try:
                with self.locked(draft.model):
                    self._refresh_references(manifest)
                    self.storage.create(
                        revision_key(manifest), self.signed_files(manifest, contents)
                    )
            except FileExistsError:
                taken = manifest.revision  # by another writer, which may have crashed
                continue
            return manifest

    def find(self, model: str, matches: Callable[[Manifest], bool]) -> Manifest | None:
        """Return the newest readable revision that ``matches``, or None."""
        for revision in reversed(self.revisions(model)):
            with contextlib.suppress(Corrupt, NotFound):  # or deleted meanwhile
                manifest = self.manifest(model, revision)
                if matches(manifest):
                    return manifest
        return None

    def sweep(self) -> list[str]:
        """Delete what crashed writers left, when it is old, and return the keys."""
        return [key for key in self.storage.abandoned() if self.storage.delete_abandoned(key)]

    def signed_files(self, manifest: Manifest, contents: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the files of a revision, the manifest last, signed if there is a key."""
        content = to_json(manifest)
        signature = self._signing.sign(content)
        signed = {} if signature is None else {signatures.FILE: signature}
        return {**contents, **signed, MANIFEST: content}


def read_manifest(storage: Storage, key: str) -> Manifest:
    """Return a manifest without verifying signatures. Raises Corrupt."""
    return _parse_manifest(storage.read(key), key)


def _parse_manifest(content: bytes, name: str) -> Manifest:
    schema = _schema_number(content)
    try:
        manifest = from_json(content, Manifest, name=name)
    except Corrupt:
        if schema in {SCHEMA, NEWEST_SCHEMA}:
            raise
    else:
        if schema <= NEWEST_SCHEMA:
            return manifest
    raise Corrupt(f"{name} has schema {schema}; this software reads {SCHEMA} and {NEWEST_SCHEMA}")


def _schema_number(content: bytes) -> int:
    """Return the schema number of a manifest of any schema; SCHEMA if it has none."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(content)
        if isinstance(document, dict) and isinstance(document.get("schema"), int):
            return int(document["schema"])
    return SCHEMA


def revision_key(manifest: Manifest) -> str:
    """Return the key of the directory of a revision."""
    return f"{MODELS}/{check_model(manifest.model)}/{manifest.revision}"


def report_key(manifest: Manifest) -> str:
    """Return the key of a revision's report.html."""
    return f"{revision_key(manifest)}/report.html"


def revision_numbers(storage: Storage, model: str) -> list[int]:
    """Return the numbers of all revisions in a model's directory, oldest first."""
    names = storage.directories(model)
    return sorted(int(name) for name in names if _REVISION.fullmatch(name))
