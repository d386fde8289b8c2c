"""Blobs of a repository by sha256: backbones, shards of exemplars, and images."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

from topwork.bundle import files
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.exemplars import Exemplars, merge, shard_of
from topwork.bundle.manifest import BackboneInfo, Manifest, ShardRef
from topwork.bundle.shards import Shard, open_shard, to_bytes
from topwork.errors import Corrupt

BlobKind = Literal["backbones", "exemplars", "images"]
"""The directory."""

KINDS: tuple[BlobKind, ...] = ("backbones", "exemplars", "images")

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"([0-9a-f]{64})(\.npz)?")


class BlobStore:
    """The immutable part of a repository. What is stored already is only written again if damaged.

    What no revision refers to is deleted by ``garbage.collect`` once it is old. So who stores or
    refers to what is there already makes it young, under a lock that keeps it from being deleted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / ".lock"
        """Shared by who makes something young, held alone by who deletes."""

    # Backbones

    def put_backbone(self, model: bytes, info: BackboneInfo) -> BackboneInfo:
        """Store an ONNX backbone and return what is stored: one that is there stays as it is.

        But for a damaged file of it, which is replaced.
        """
        target = self.path("backbones", info.digest)
        content = {"backbone.onnx": model, "backbone.json": to_json(info)}
        if not self.renew(target):
            # Another writer may store the same bytes first.
            with contextlib.suppress(FileExistsError), files.new_directory(target) as directory:
                for name, data in content.items():
                    (directory / name).write_bytes(data)
        if not _has(target / "backbone.onnx", model):
            files.write_file(target / "backbone.onnx", model)
        with contextlib.suppress(Corrupt):
            return self.backbone_info(info.digest)
        files.write_file(target / "backbone.json", content["backbone.json"])
        return info

    def backbone(self, manifest: Manifest) -> BackboneInfo:
        """Return what a revision's backbone is. Raises Corrupt if it was changed or is missing."""
        path = self.path("backbones", manifest.backbone) / "backbone.json"
        content = files.read_verified(path, manifest.backbone_info)
        return from_json(content, BackboneInfo, name=files.short_path(path))

    def backbone_info(self, digest: str) -> BackboneInfo:
        """Return what a stored backbone is, whoever refers to it. Raises Corrupt."""
        path = self.path("backbones", digest) / "backbone.json"
        return from_json(files.read(path), BackboneInfo, name=files.short_path(path))

    def backbone_info_digest(self, digest: str) -> str:
        """Return the sha256 of a stored backbone's backbone.json, for a new manifest."""
        return files.sha256(files.read(self.path("backbones", digest) / "backbone.json"))

    def backbone_model(self, digest: str) -> bytes:
        """Return a backbone's ONNX file. Raises Corrupt if it was changed or is missing."""
        return files.read_verified(self.path("backbones", digest) / "backbone.onnx", digest)

    def backbones(self) -> list[BackboneInfo]:
        """Return all stored backbones that can be read, in the order of their digests."""
        found = []
        for digest in sorted(self.stored("backbones")):
            with contextlib.suppress(Corrupt):
                found.append(self.backbone_info(digest))
        return found

    # Exemplars and images

    def put_exemplars(self, exemplars: Exemplars) -> tuple[ShardRef, ...]:
        """Store exemplars as one shard a label and return what a manifest says of them."""
        return tuple(
            ShardRef(label=label, digest=self.put_shard(shard_of(exemplars, label)))
            for label in exemplars.labels
        )

    def put_shard(self, shard: Shard) -> str:
        """Store a shard durably and return its digest."""
        return self._put("exemplars", to_bytes(shard))

    def exemplars(self, refs: Sequence[ShardRef]) -> Exemplars:
        """Return the exemplars of all shards that ``refs`` name. Raises Corrupt."""
        return merge(self.shards(refs))

    def shards(self, refs: Sequence[ShardRef]) -> tuple[tuple[str, Shard], ...]:
        """Return the label and the shard of each of ``refs``. Raises Corrupt."""
        return tuple((ref.label, self.shard(ref.digest)) for ref in refs)

    def shard(self, digest: str) -> Shard:
        """Return a shard; its embeddings are mapped, not read, into memory. Raises Corrupt."""
        return open_shard(self.path("exemplars", digest), digest)

    def put_image(self, content: bytes) -> str:
        """Store an encoded image durably and return its digest."""
        return self._put("images", content)

    def image(self, digest: str) -> bytes:
        """Return a stored image. Raises Corrupt."""
        return files.read_verified(self.path("images", digest), digest)

    # All kinds

    def path(self, kind: BlobKind, digest: str) -> Path:
        """Return where something is stored, or would be. Raises Corrupt if it is no digest."""
        if not _HEX.fullmatch(digest):  # whoever wrote it: it becomes part of a path
            raise Corrupt(f"{digest[:80]!r} is no sha256")
        return self.root / kind / (f"{digest}.npz" if kind == "exemplars" else digest)

    def stored(self, kind: BlobKind) -> dict[str, Path]:
        """Return the path of everything of one kind, by its digest; other names are left out."""
        found = {}
        for path in (self.root / kind).glob("*"):
            match = _DIGEST.fullmatch(path.name)
            if match and path == self.path(kind, match[1]):
                found[match[1]] = path
        return found

    def renew(self, path: Path) -> bool:
        """Make something that is stored young; return whether it is there."""
        if not path.exists():
            return False
        with self._kept(), contextlib.suppress(FileNotFoundError):
            files.touch(path)
            return True
        return False

    @contextlib.contextmanager
    def holding(self, images: Collection[str]) -> Iterator[None]:
        """Make images young and durable, and keep them while the block runs.

        Who lets something refer to them within the block, such as an operation, finds them there:
        ``garbage.collect`` asks for such references while nobody holds images. Raises Corrupt if
        one is missing.
        """
        with self._kept():
            for digest in images:
                path = self.path("images", digest)
                try:
                    files.touch(path)
                except FileNotFoundError:
                    raise Corrupt(f"{files.short_path(path)} is missing") from None
            if images:  # whoever stored them first may not have come to it
                files.sync_directory(self.root / "images")
            yield

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Let nothing stored be deleted while the block runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        with files.locked(self.lock, shared=True):
            yield

    def _put(self, kind: BlobKind, content: bytes) -> str:
        digest = files.sha256(content)
        path = self.path(kind, digest)
        if not (self.renew(path) and _has(path, content)):
            files.write_file(path, content, under=self._kept)
        return digest


def _has(path: Path, content: bytes) -> bool:
    """Return whether a file has this content; False if it is missing or cannot be read."""
    try:
        return files.read(path) == content
    except (Corrupt, OSError):
        return False
