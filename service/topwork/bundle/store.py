"""The repository: the directory that holds all bundles, and how revisions get into it.

    backbones/<sha256>/backbone.onnx, backbone.json
    exemplars/<sha256>.npz
    images/<sha256>
    models/<model>/<revision>/manifest.json, manifest.sig, head.onnx, metrics.json, report.html
    models/<model>/serving.json

Everything is immutable but serving.json. Every file is checked against its sha256 when it is read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from topwork.bundle import files
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.manifest import SCHEMA, Manifest, check_may_serve
from topwork.bundle.metrics import Metrics
from topwork.bundle.names import check_model, is_model
from topwork.bundle.serving import Move, ServingState
from topwork.bundle.signing import signatures
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.bundle.stored import KINDS, BlobStore
from topwork.errors import Corrupt, NotFound

_REVISION = re.compile(r"[1-9][0-9]{0,17}")


class Repository(BlobStore):
    """A repository on a file system. Any number of readers, in any process; writers may race.

    ``signing`` says whose signatures a revision must have to be read at all, and with which key
    what is published here is signed.
    """

    def __init__(self, root: Path, signing: Signing = UNSIGNED) -> None:
        super().__init__(root)
        self._signing = signing

    def models(self) -> list[str]:
        """Return the names of all models that have a serving revision, sorted.

        A folder whose name is no model's, such as a copy made by hand, is left out.
        """
        names = (path.parent.name for path in (self.root / "models").glob("*/serving.json"))
        return sorted(name for name in names if is_model(name))

    def revisions(self, model: str) -> list[int]:
        """Return the numbers of all published revisions, oldest first. Raises NotFound."""
        directory = files.existing(self._model(model), kind="model", name=f"models/{model}")
        return [int(path.name) for path in revision_directories(directory)]

    def serving(self, model: str) -> int:
        """Return the number of the revision that serves. Raises NotFound."""
        return self.serving_state(model).revision

    def serving_state(self, model: str) -> ServingState:
        """Return what serves, what is pinned, and how that came. Raises NotFound, Corrupt."""
        path = files.existing(self.serving_file(model), kind="model", name=f"models/{model}")
        return from_json(files.read(path), ServingState, name=files.short_path(path))

    def was_moved_by(self, model: str, operation: str, revision: int) -> bool:
        """Return whether ``operation`` has moved the model's serving pointer to ``revision``."""
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
        """Let ``revision`` serve, atomically, and return the number of the one that serves then.

        With ``parent`` that is only done while ``parent`` serves; else the one that does goes on.
        An operation moves the pointer to it once: again, after a crash, it changes nothing. Raises
        NotFound if it was never published, NotReady if its gate rejected it.
        """
        with self.locked(model):
            check_may_serve(self.manifest(model, revision))
            try:
                state = self.serving_state(model)
            except NotFound:
                if parent is not None:
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
        """Keep a revision for good, or no longer, and return what is so then. Raises NotFound."""
        with self.locked(model):
            state = self.serving_state(model)
            if pinned or revision not in state.pinned:
                self.manifest(model, revision)
            others = {one for one in state.pinned if one != revision}
            after = replace(state, pinned=tuple(sorted(others | {revision} if pinned else others)))
            if after != state:
                files.write_file(self.serving_file(model), to_json(after))
        return after

    def serving_file(self, model: str) -> Path:
        """Return the path of the one mutable file, for those who watch it."""
        return self._model(model) / "serving.json"

    def manifest(self, model: str, revision: int) -> Manifest:
        """Return a revision's manifest. Raises NotFound, and Corrupt, for its signatures, too."""
        path = files.existing(
            self._model(model) / str(revision) / "manifest.json",
            kind="revision",
            name=f"models/{model}/revisions/{revision}",
        )
        content = files.read(path)
        self._signing.check(path.parent, content)
        manifest = _parsed(content, path)
        if (manifest.model, manifest.revision) != (model, revision):
            raise Corrupt(
                f"{files.short_path(path)} is of {manifest.model} revision {manifest.revision}"
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

    def report_file(self, manifest: Manifest) -> Path:
        """Return the path of a revision's report.html, for those who open it in a browser."""
        return self._revision(manifest) / "report.html"

    def publish(
        self,
        draft: Manifest,
        *,
        head: bytes,
        metrics: Metrics,
        report: Callable[[Manifest], bytes],
    ) -> Manifest:
        """Publish the next revision of ``draft.model`` and return its manifest.

        Revision, digests of the files, and time of ``draft`` are filled in here; ``report`` is
        called with the manifest but for the report's own digest. A crash leaves the whole revision
        or none. It does not serve yet: see ``set_serving``. Raises Corrupt if a shard or the
        backbone that it refers to is not there.
        """
        parent = self._model(draft.model)
        parent.mkdir(parents=True, exist_ok=True)
        metrics_json = to_json(metrics)
        while True:
            manifest = replace(
                draft,
                revision=max(self.revisions(draft.model), default=0) + 1,
                head=files.sha256(head),
                metrics=files.sha256(metrics_json),
                created=datetime.now(UTC),
            )
            page = report(manifest)
            manifest = replace(manifest, report=files.sha256(page))
            try:
                with files.new_directory(parent / str(manifest.revision)) as directory:
                    (directory / "head.onnx").write_bytes(head)
                    (directory / "metrics.json").write_bytes(metrics_json)
                    (directory / "report.html").write_bytes(page)
                    content = to_json(manifest)
                    (directory / "manifest.json").write_bytes(content)
                    signature = self._signing.sign(content)
                    if signature is not None:
                        (directory / signatures.FILE).write_bytes(signature)
                    self._renew(manifest)
            except FileExistsError:
                continue  # another writer took the number
            return manifest

    def find(self, model: str, matches: Callable[[Manifest], bool]) -> Manifest | None:
        """Return the newest published revision that ``matches``, if there is one.

        Revisions that cannot be read are passed over.
        """
        for revision in reversed(self.revisions(model)):
            with contextlib.suppress(Corrupt, NotFound):  # or deleted meanwhile
                manifest = self.manifest(model, revision)
                if matches(manifest):
                    return manifest
        return None

    def abandoned(self, *, age: float = files.ABANDONED_AFTER) -> list[Path]:
        """Return what crashed writers left more than ``age`` seconds ago."""
        return [path for one in self._written_to() for path in files.abandoned(one, age=age)]

    def sweep(self) -> list[Path]:
        """Delete what ``abandoned`` returns and return the paths."""
        return [path for one in self._written_to() for path in files.sweep(one)]

    @contextlib.contextmanager
    def locked(self, model: str) -> Iterator[None]:
        """Hold the lock under which a model's serving.json and set of revisions may change.

        A new revision needs none: it changes neither. Raises NotFound.
        """
        directory = files.existing(self._model(model), kind="model", name=f"models/{model}")
        with files.locked(directory / ".lock"):
            yield

    def _written_to(self) -> list[Path]:
        models = [path for path in (self.root / "models").glob("*") if path.is_dir()]
        return [self.root, *(self.root / name for name in ("checkpoints", *KINDS)), *models]

    def _renew(self, manifest: Manifest) -> None:
        """Make young what a manifest refers to. Raises Corrupt if something is missing."""
        for path in (
            self.path("backbones", manifest.backbone),
            *(self.path("exemplars", ref.digest) for ref in manifest.exemplars),
        ):
            if not self.renew(path):
                raise Corrupt(f"{files.short_path(path)} is missing")

    def _model(self, model: str) -> Path:
        return self.root / "models" / check_model(model)

    def _revision(self, manifest: Manifest) -> Path:
        return self._model(manifest.model) / str(manifest.revision)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at ``path``, whoever signed it. Raises Corrupt."""
    return _parsed(files.read(path), path)


def _parsed(content: bytes, path: Path) -> Manifest:
    schema = _schema(content)
    try:
        manifest = from_json(content, Manifest, name=files.short_path(path))
    except Corrupt:
        if schema == SCHEMA:
            raise
    else:
        if schema <= SCHEMA:
            return manifest
    raise Corrupt(f"{files.short_path(path)} has schema {schema}; this software reads {SCHEMA}")


def _schema(content: bytes) -> int:
    """Return the schema that a manifest names, also one of another schema; else SCHEMA."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict) and isinstance(found.get("schema"), int):
            return int(found["schema"])
    return SCHEMA


def revision_directories(model: Path) -> list[Path]:
    """Return the directories of all published revisions of a model's directory, oldest first."""
    found = (path for path in model.glob("*") if _REVISION.fullmatch(path.name))
    return sorted(found, key=lambda path: int(path.name))
