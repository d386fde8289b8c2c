"""The repository: the directory that holds all bundles, and how revisions get into it.

    backbones/<sha256>/backbone.onnx, backbone.json
    exemplars/<sha256>.npz
    images/<sha256>
    models/<model>/<revision>/manifest.json, head.onnx, metrics.json, report.html
    models/<model>/serving.json

Everything is immutable but serving.json. Every file is checked against its sha256 when it is read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from topwork.bundle import exemplars as exemplar_files
from topwork.bundle import files
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import SCHEMA, BackboneInfo, Manifest, from_json, to_json
from topwork.bundle.metrics import Metrics
from topwork.bundle.names import check_model, is_model
from topwork.errors import Corrupt

_REVISION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Serving:
    revision: int


class Repository:
    """A repository on a file system. Any number of readers, in any process; writers may race."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # Backbones

    def put_backbone(self, model: bytes, info: BackboneInfo) -> BackboneInfo:
        """Store an ONNX backbone and return what is stored: one that is there stays as it is."""
        target = self.root / "backbones" / info.digest
        if not target.exists():
            # Another writer may store the same bytes first.
            with contextlib.suppress(FileExistsError), files.new_directory(target) as directory:
                (directory / "backbone.onnx").write_bytes(model)
                (directory / "backbone.json").write_bytes(to_json(info))
        path = self._backbone_info(info.digest)
        return from_json(_read(path), BackboneInfo, name=files.shown(path))

    def backbone(self, manifest: Manifest) -> BackboneInfo:
        """Return what a revision's backbone is. Raises Corrupt if it was changed or is missing."""
        path = self._backbone_info(manifest.backbone)
        content = files.read_verified(path, manifest.backbone_info)
        return from_json(content, BackboneInfo, name=files.shown(path))

    def backbone_info_digest(self, digest: str) -> str:
        """Return the sha256 of a stored backbone's backbone.json, for a new manifest."""
        return files.sha256(_read(self._backbone_info(digest)))

    def backbone_model(self, digest: str) -> bytes:
        """Return a backbone's ONNX file. Raises Corrupt if it was changed or is missing."""
        return files.read_verified(self.root / "backbones" / digest / "backbone.onnx", digest)

    def backbones(self) -> list[BackboneInfo]:
        """Return all stored backbones, in the order of their digests."""
        paths = sorted((self.root / "backbones").glob("[0-9a-f]*/backbone.json"))
        return [from_json(_read(path), BackboneInfo, name=files.shown(path)) for path in paths]

    # Exemplars and images

    def put_exemplars(self, exemplars: Exemplars) -> str:
        """Store exemplars as one shard and return its digest."""
        return self._put("exemplars", exemplar_files.to_bytes(exemplars), ".npz")

    def exemplars(self, shards: Sequence[str]) -> Exemplars:
        """Return the exemplars of all ``shards``. Raises Corrupt."""
        return exemplar_files.merge(
            [
                exemplar_files.from_bytes(
                    files.read_verified(self.root / "exemplars" / f"{digest}.npz", digest)
                )
                for digest in shards
            ]
        )

    def put_image(self, content: bytes) -> str:
        """Store an encoded image durably and return its digest."""
        return self._put("images", content)

    def image(self, digest: str) -> bytes:
        """Return a stored image. Raises Corrupt."""
        return files.read_verified(self.root / "images" / digest, digest)

    # Models

    def models(self) -> list[str]:
        """Return the names of all models that have a serving revision, sorted.

        A folder whose name is no model's, such as a copy made by hand, is left out.
        """
        names = (path.parent.name for path in (self.root / "models").glob("*/serving.json"))
        return sorted(name for name in names if is_model(name))

    def revisions(self, model: str) -> list[int]:
        """Return the numbers of all published revisions, oldest first. Raises NotFound."""
        directory = files.existing(self._model(model), kind="model", name=f"models/{model}")
        return sorted(
            int(path.name) for path in directory.iterdir() if _REVISION.fullmatch(path.name)
        )

    def serving(self, model: str) -> int:
        """Return the number of the revision that serves. Raises NotFound."""
        path = files.existing(self.serving_file(model), kind="model", name=f"models/{model}")
        return from_json(_read(path), _Serving, name=files.shown(path)).revision

    def set_serving(self, model: str, revision: int, *, parent: int | None = None) -> int:
        """Let ``revision`` serve, atomically, and return the number of the one that serves then.

        With ``parent`` that is only done while ``parent`` serves; else the one that does goes on.
        Raises NotFound if it was never published.
        """
        self.manifest(model, revision)
        with files.locked(self._model(model) / ".lock"):
            if parent is not None and (serving := self.serving(model)) != parent:
                return serving
            files.write_file(self.serving_file(model), to_json(_Serving(revision=revision)))
        return revision

    def serving_file(self, model: str) -> Path:
        """Return the path of the one mutable file, for those who watch it."""
        return self._model(model) / "serving.json"

    def manifest(self, model: str, revision: int) -> Manifest:
        """Return a revision's manifest. Raises NotFound, Corrupt."""
        path = files.existing(
            self._model(model) / str(revision) / "manifest.json",
            kind="revision",
            name=f"models/{model}/revisions/{revision}",
        )
        manifest = from_json(_read(path), Manifest, name=files.shown(path))
        if manifest.schema > SCHEMA:
            raise Corrupt(
                f"{files.shown(path)} has schema {manifest.schema}; this software reads {SCHEMA}"
            )
        if (manifest.model, manifest.revision) != (model, revision):
            raise Corrupt(
                f"{files.shown(path)} is of {manifest.model} revision {manifest.revision}"
            )
        return manifest

    def head(self, manifest: Manifest) -> bytes:
        """Return a revision's head.onnx. Raises Corrupt."""
        return files.read_verified(self._revision(manifest) / "head.onnx", manifest.head)

    def metrics(self, manifest: Manifest) -> Metrics:
        """Return a revision's metrics. Raises Corrupt."""
        path = self._revision(manifest) / "metrics.json"
        return from_json(
            files.read_verified(path, manifest.metrics), Metrics, name=files.shown(path)
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
        or none. It does not serve yet: see ``set_serving``.
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
                    (directory / "manifest.json").write_bytes(to_json(manifest))
            except FileExistsError:
                continue  # another writer took the number
            return manifest

    def find(self, model: str, matches: Callable[[Manifest], bool]) -> Manifest | None:
        """Return the newest published revision that ``matches``, if there is one.

        Revisions that cannot be read are passed over.
        """
        for revision in reversed(self.revisions(model)):
            with contextlib.suppress(Corrupt):
                manifest = self.manifest(model, revision)
                if matches(manifest):
                    return manifest
        return None

    def sweep(self) -> list[Path]:
        """Delete what crashed writers left more than an hour ago and return the paths."""
        models = [path for path in (self.root / "models").glob("*") if path.is_dir()]
        kinds = [self.root / kind for kind in ("backbones", "exemplars", "images")]
        return [path for directory in (*kinds, *models) for path in files.sweep(directory)]

    def _put(self, kind: str, content: bytes, suffix: str = "") -> str:
        digest = files.sha256(content)
        path = self.root / kind / f"{digest}{suffix}"
        if not path.exists():
            files.write_file(path, content)
        return digest

    def _backbone_info(self, digest: str) -> Path:
        return self.root / "backbones" / digest / "backbone.json"

    def _model(self, model: str) -> Path:
        return self.root / "models" / check_model(model)

    def _revision(self, manifest: Manifest) -> Path:
        return self._model(manifest.model) / str(manifest.revision)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"{files.shown(path)} is missing") from None
