"""Blob store: backbones, shards of exemplars and images, stored by their sha256."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

from topwork.bundle import files
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.draft import Current
from topwork.bundle.exemplars import Exemplars, merge, shard_of
from topwork.bundle.manifest import BackboneInfo, BackboneNames, ShardRef
from topwork.bundle.shards import Shard, open_shard, to_bytes
from topwork.errors import AlreadyExists, Corrupt

BlobKind = Literal["backbones", "exemplars", "images"]
"""Kind of a blob, which is also its directory."""

KINDS: tuple[BlobKind, ...] = ("backbones", "exemplars", "images")

GRAPH, SPACE = "backbone.onnx", "space.json"
"""File of a backbone that its digest is the sha256 of: a graph, or the description of a space."""

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"([0-9a-f]{64})(\.npz)?")


class BlobStore:
    """Immutable blobs of a repository. A blob that exists is rewritten only if it is damaged.

    ``garbage.collect`` deletes old blobs that no revision and no name refers to. A writer that
    stores a blob again or refers to it therefore refreshes its modification time, under a lock that
    blocks deletion.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / ".lock"
        """Lock file: shared for refreshing blobs, exclusive for deleting them."""

    # Backbones

    def put_backbone(self, model: bytes, info: BackboneInfo) -> BackboneInfo:
        """Store a backbone unless it exists, repair damaged files, and return its info.

        ``model`` is its ONNX graph, or the description of its space.
        """
        target = self.path("backbones", info.digest)
        file = GRAPH if info.has_graph else SPACE
        content = {file: model, "backbone.json": to_json(info)}
        if not self.refresh(target):
            # Another writer may store the same backbone first.
            with contextlib.suppress(FileExistsError), files.new_directory(target) as directory:
                for name, data in content.items():
                    (directory / name).write_bytes(data)
        if not _has_content(target / file, model):
            files.write_file(target / file, model)
        with contextlib.suppress(Corrupt):
            return self.backbone_info(info.digest)
        files.write_file(target / "backbone.json", content["backbone.json"])
        return info

    def backbone(self, current: Current) -> BackboneInfo:
        """Return the info of a revision's or draft's backbone.

        Raises Corrupt if it is changed or missing.
        """
        path = self.path("backbones", current.backbone) / "backbone.json"
        content = files.read_verified(path, current.backbone_info)
        return from_json(content, BackboneInfo, name=files.short_path(path))

    def backbone_info(self, digest: str) -> BackboneInfo:
        """Return the info of a stored backbone, not verified by a manifest. Raises Corrupt."""
        path = self.path("backbones", digest) / "backbone.json"
        return from_json(files.read(path), BackboneInfo, name=files.short_path(path))

    def backbone_info_digest(self, digest: str) -> str:
        """Return the sha256 of a stored backbone.json, for a new manifest. Raises Corrupt."""
        return files.sha256(files.read(self.path("backbones", digest) / "backbone.json"))

    def backbone_model(self, digest: str) -> bytes:
        """Return a backbone's graph, or the description of its space.

        Raises Corrupt if it was changed or is missing.
        """
        return files.read_verified(self.backbone_file(digest), digest)

    def backbone_file(self, digest: str) -> Path:
        """Return the path of what ``backbone_model`` returns."""
        directory = self.path("backbones", digest)
        space = directory / SPACE
        return space if space.exists() else directory / GRAPH

    def backbones(self) -> list[BackboneInfo]:
        """Return the info of all readable backbones, sorted by digest."""
        infos = []
        for digest in sorted(self.stored("backbones")):
            with contextlib.suppress(Corrupt):
                infos.append(self.backbone_info(digest))
        return infos

    @property
    def names_file(self) -> Path:
        """Path of the names of added backbones, the only mutable file beside blobs."""
        return self.root / "backbones" / "names.json"

    def added_backbones(self) -> dict[str, str]:
        """Return the digests of the backbones that were added, by name. Raises Corrupt."""
        if not self.names_file.exists():
            return {}
        name = files.short_path(self.names_file)
        return from_json(files.read(self.names_file), BackboneNames, name=name).names

    def add_backbone(self, name: str, digest: str, *, replace: bool = False) -> None:
        """Give a stored backbone a name, by which a fit finds it; ``gc`` keeps it.

        Raises AlreadyExists if another backbone has the name and ``replace`` is false, Corrupt if
        the backbone is not stored.
        """
        path = self.path("backbones", digest)
        self.root.mkdir(parents=True, exist_ok=True)
        with files.locked(self.lock):
            try:
                files.touch(path)  # a concurrent ``garbage.collect`` may have read the names before
            except FileNotFoundError:
                raise Corrupt(f"{files.short_path(path)} is missing") from None
            names = self.added_backbones()
            if not replace and names.get(name, digest) != digest:
                raise AlreadyExists(
                    f"the repository has another backbone {name!r}, {names[name][:12]}",
                    kind="backbone",
                    resource=name,
                )
            names[name] = digest
            content = to_json(BackboneNames(names=dict(sorted(names.items()))))
            files.write_file(self.names_file, content)

    # Exemplars and images

    def put_exemplars(self, exemplars: Exemplars) -> tuple[ShardRef, ...]:
        """Store one shard per label and return the references for a manifest."""
        return tuple(
            ShardRef(label=label, digest=self.put_shard(shard_of(exemplars, label)))
            for label in exemplars.labels
        )

    def put_shard(self, shard: Shard) -> str:
        """Store a shard durably and return its digest."""
        return self._put("exemplars", to_bytes(shard))

    def exemplars(self, refs: Sequence[ShardRef]) -> Exemplars:
        """Return the exemplars of all ``refs``. Raises Corrupt."""
        return merge(self.shards(refs))

    def shards(self, refs: Sequence[ShardRef]) -> tuple[tuple[str, Shard], ...]:
        """Return label and shard of each of ``refs``. Raises Corrupt."""
        return tuple((ref.label, self.shard(ref.digest)) for ref in refs)

    def shard(self, digest: str) -> Shard:
        """Return a memory-mapped shard. Raises Corrupt."""
        return open_shard(self.path("exemplars", digest), digest)

    def put_image(self, content: bytes) -> str:
        """Store an encoded image durably and return its digest."""
        return self._put("images", content)

    def image(self, digest: str) -> bytes:
        """Return a stored image. Raises Corrupt."""
        return files.read_verified(self.path("images", digest), digest)

    # All kinds

    def path(self, kind: BlobKind, digest: str) -> Path:
        """Return the path of a blob, stored or not. Raises Corrupt if ``digest`` is no sha256."""
        if not _HEX.fullmatch(digest):  # may come from a tampered manifest or database
            raise Corrupt(f"{digest[:80]!r} is not a sha256")
        return self.root / kind / (f"{digest}.npz" if kind == "exemplars" else digest)

    def stored(self, kind: BlobKind) -> dict[str, Path]:
        """Return the paths of all blobs of a kind by digest; ignores other file names."""
        paths = {}
        for path in (self.root / kind).glob("*"):
            match = _DIGEST.fullmatch(path.name)
            if match and path == self.path(kind, match[1]):
                paths[match[1]] = path
        return paths

    def refresh(self, path: Path) -> bool:
        """Set the modification time of a blob to now; return False if it does not exist."""
        if not path.exists():
            return False
        with self._deletion_blocked(), contextlib.suppress(FileNotFoundError):
            files.touch(path)
            return True
        return False

    @contextlib.contextmanager
    def holding(self, images: Collection[str]) -> Iterator[None]:
        """Refresh images, make them durable, and block their deletion while the block runs.

        The caller commits the reference to them, such as an operation, within the block:
        ``garbage.collect`` queries these references while no caller holds images. Raises Corrupt
        if an image is missing.
        """
        with self._deletion_blocked():
            for digest in images:
                path = self.path("images", digest)
                try:
                    files.touch(path)
                except FileNotFoundError:
                    raise Corrupt(f"{files.short_path(path)} is missing") from None
            if images:  # the writer that stored them may have died before its own fsync
                files.sync_directory(self.root / "images")
            yield

    @contextlib.contextmanager
    def _deletion_blocked(self) -> Iterator[None]:
        """Hold the shared lock, so that no blob is deleted while the block runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        with files.locked(self.lock, shared=True):
            yield

    def _put(self, kind: BlobKind, content: bytes) -> str:
        digest = files.sha256(content)
        path = self.path(kind, digest)
        if not (self.refresh(path) and _has_content(path, content)):
            files.write_file(path, content, under=self._deletion_blocked)
        return digest


def _has_content(path: Path, content: bytes) -> bool:
    """Return True if the file can be read and has this content."""
    try:
        return files.read(path) == content
    except (Corrupt, OSError):
        return False
