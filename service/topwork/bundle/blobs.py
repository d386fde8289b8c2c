"""Blob store: backbones, shards of exemplars and images, stored by their sha256."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from topwork.bundle.documents import from_json, to_json
from topwork.bundle.draft import Current
from topwork.bundle.exemplars import Exemplars, merge, shard_of
from topwork.bundle.manifest import BackboneInfo, BackboneNames, ShardRef
from topwork.bundle.shards import Shard, open_shard, to_bytes
from topwork.errors import AlreadyExists, Corrupt, InvalidInput
from topwork.storage import files
from topwork.storage.file_storage import FileStorage
from topwork.storage.storage import ABSENT, Entry, Storage, Tag

T = TypeVar("T")

BlobKind = Literal["backbones", "exemplars", "images"]
"""Kind of a blob, which is also its directory."""

KINDS: tuple[BlobKind, ...] = ("backbones", "exemplars", "images")

NAMES = "backbones/names.json"
"""Key of the names of added backbones, the only mutable file beside blobs."""

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

    def __init__(self, storage: Storage | Path) -> None:
        self.storage = FileStorage(storage) if isinstance(storage, Path) else storage

    @property
    def root(self) -> Path:
        """The directory of a repository on a file system. Raises InvalidInput for others."""
        if isinstance(self.storage, FileStorage):
            return self.storage.root
        raise InvalidInput(f"{self.storage} is not in a file system", field="repository")

    # Backbones

    def put_backbone(self, model: bytes, info: BackboneInfo) -> BackboneInfo:
        """Store a backbone unless it exists, repair damaged files, and return its info.

        ``model`` is its ONNX graph, or the description of its space.
        """
        target = self.key("backbones", info.digest)
        file = GRAPH if info.has_graph else SPACE
        content = {file: model, "backbone.json": to_json(info)}
        stored = False
        if self.storage.refresh([target]):
            # Another writer may store the same backbone first.
            with contextlib.suppress(FileExistsError):
                self.storage.create(target, content)
        with contextlib.suppress(Corrupt, OSError):
            if self.storage.read(f"{target}/{file}") == model:
                stored = True
        if not stored:
            self.storage.write(f"{target}/{file}", model)
        with contextlib.suppress(Corrupt):
            return self.backbone_info(info.digest)
        self.storage.write(f"{target}/backbone.json", content["backbone.json"])
        return info

    def backbone(self, current: Current) -> BackboneInfo:
        """Return the info of a revision's or draft's backbone.

        Raises Corrupt if it is changed or missing.
        """
        key = self._info_key(current.backbone)
        content = self.storage.read_verified(key, current.backbone_info)
        return from_json(content, BackboneInfo, name=key)

    def backbone_info(self, digest: str) -> BackboneInfo:
        """Return the info of a stored backbone, not verified by a manifest. Raises Corrupt."""
        key = self._info_key(digest)
        return from_json(self.storage.read(key), BackboneInfo, name=key)

    def backbone_info_digest(self, digest: str) -> str:
        """Return the sha256 of a stored backbone.json, for a new manifest. Raises Corrupt."""
        return files.sha256(self.storage.read(self._info_key(digest)))

    def backbone_model(self, digest: str) -> bytes:
        """Return a backbone's graph, or the description of its space.

        Raises Corrupt if it was changed or is missing.
        """
        return self.storage.read_verified(self.backbone_key(digest), digest)

    def backbone_key(self, digest: str) -> str:
        """Return the key of what ``backbone_model`` returns."""
        directory = self.key("backbones", digest)
        space = f"{directory}/{SPACE}"
        return space if self.storage.exists(space) else f"{directory}/{GRAPH}"

    def backbones(self) -> list[BackboneInfo]:
        """Return the info of all readable backbones, sorted by digest."""
        infos = []
        for digest in sorted(self.stored("backbones")):
            with contextlib.suppress(Corrupt):
                infos.append(self.backbone_info(digest))
        return infos

    def added_backbones(self) -> dict[str, str]:
        """Return the digests of the backbones that were added, by name. Raises Corrupt."""
        return self._tagged_names()[0]

    def add_backbone(self, name: str, digest: str, *, replace: bool = False) -> None:
        """Give a stored backbone a name, by which a fit finds it; ``gc`` keeps it.

        Raises AlreadyExists if another backbone has the name and ``replace`` is false, Corrupt if
        the backbone is not stored, Stale if another writer changes the names now.
        """
        key = self.key("backbones", digest)
        key = self.key("backbones", digest)
        # A concurrent ``garbage.collect`` may have read the names before.
        with self.storage.holding([key]) as missing:
            check_none(missing)
            with self.storage.locked("backbones"):
                names, tag = self._tagged_names()
                if not replace and names.get(name, digest) != digest:
                    raise AlreadyExists(
                        f"the repository has another backbone {name!r}, {names[name][:12]}",
                        kind="backbone",
                        resource=name,
                    )
                names[name] = digest
                content = to_json(BackboneNames(names=dict(sorted(names.items()))))
                self.storage.write(NAMES, content, expected=tag)

    def _tagged_names(self) -> tuple[dict[str, str], Tag]:
        if not self.storage.exists(NAMES):
            return {}, ABSENT
        content, tag = self.storage.read_tagged(NAMES)
        return from_json(content, BackboneNames, name=NAMES).names, tag

    def _info_key(self, digest: str) -> str:
        return f"{self.key('backbones', digest)}/backbone.json"

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
        return self.open_local(digest, lambda path: open_shard(path, digest))

    def open_local(self, digest: str, open_file: Callable[[Path], T]) -> T:
        """Return what ``open_file``, which verifies it, makes of the local file of a shard.

        A damaged file in the cache of a bucket is fetched once again. Raises Corrupt.
        """
        key = self.key("exemplars", digest)
        try:
            return open_file(self.storage.local(key, digest))
        except Corrupt:
            return open_file(self.storage.local(key, digest, again=True))

    def put_image(self, content: bytes) -> str:
        """Store an encoded image durably and return its digest."""
        return self._put("images", content)

    def image(self, digest: str) -> bytes:
        """Return a stored image. Raises Corrupt."""
        return self.storage.read_verified(self.key("images", digest), digest)

    def stored_images(self, digests: Collection[str]) -> set[str]:
        """Return those of the digests whose images are stored."""
        keys = {self.key("images", digest): digest for digest in digests}
        return {keys[key] for key in self.storage.sizes(keys)}

    # All kinds

    def key(self, kind: BlobKind, digest: str) -> str:
        """Return the key of a blob, stored or not. Raises Corrupt if ``digest`` is no sha256."""
        if not _HEX.fullmatch(digest):  # may come from a tampered manifest or database
            raise Corrupt(f"{digest[:80]!r} is not a sha256")
        return f"{kind}/{digest}.npz" if kind == "exemplars" else f"{kind}/{digest}"

    def stored(self, kind: BlobKind) -> dict[str, Entry]:
        """Return facts about all blobs of a kind by digest; ignores other file names."""
        found = {}
        for name, entry in self.storage.refreshed(kind).items():
            match = _DIGEST.fullmatch(name)
            if match and f"{kind}/{name}" == self.key(kind, match[1]):
                found[match[1]] = entry
        return found

    def refresh_shards(self, refs: Collection[ShardRef]) -> None:
        """Set the times of shards to now, for a new reference. Raises Corrupt if one is missing."""
        check_none(self.storage.refresh([self.key("exemplars", ref.digest) for ref in refs]))

    @contextlib.contextmanager
    def holding(self, images: Collection[str]) -> Iterator[None]:
        """Refresh images, make them durable, and block their deletion while the block runs.

        The caller commits the reference to them, such as an operation, within the block:
        ``garbage.collect`` queries these references while no caller holds images. Raises Corrupt
        if an image is missing.
        """
        with self.storage.holding([self.key("images", digest) for digest in images]) as missing:
            check_none(missing)
            yield

    def _put(self, kind: BlobKind, content: bytes) -> str:
        digest = files.sha256(content)
        self.storage.put_blob(self.key(kind, digest), content)
        return digest


def check_none(missing: Collection[str]) -> None:
    """Raise Corrupt if keys are missing."""
    if missing:
        raise Corrupt(f"{min(missing)} is missing")
