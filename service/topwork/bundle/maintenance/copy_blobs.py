"""Copies of backbones, shards and images from one repository to another, verified by sha256."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

from topwork.bundle.blobs import GRAPH, SPACE, BlobKind
from topwork.bundle.documents import from_json
from topwork.bundle.maintenance.check import OnProgress, Problem
from topwork.bundle.maintenance.copy_state import reading
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.storage.files import sha256
from topwork.storage.storage import Storage

CopiedKind = Literal["backbone", "shard", "image", "revision", "evaluation", "candidate", "model"]
"""Kind of what is copied; a model is its serving pointer, draft and review policy."""

COPIED: tuple[CopiedKind, ...] = get_args(CopiedKind)

WORKERS: dict[BlobKind, int] = {"backbones": 1, "exemplars": 2, "images": 8}
"""Raising it copies small files of a bucket faster, and has as many files in memory."""

_UNKNOWN = "0" * 64
"""Content digest of an exemplar whose file is unknown."""

_SINGULAR: dict[BlobKind, CopiedKind] = {
    "backbones": "backbone",
    "exemplars": "shard",
    "images": "image",
}


@dataclass(slots=True, kw_only=True)
class Tally:
    """Numbers and problems of a copy so far."""

    on_progress: OnProgress
    written: Counter[CopiedKind] = field(default_factory=Counter)
    present: Counter[CopiedKind] = field(default_factory=Counter)
    size: int = 0
    """Bytes written."""
    problems: list[Problem] = field(default_factory=list)
    done: int = 0
    total: int = 0

    def expect(self, count: int) -> None:
        """Add items to the total of the progress."""
        self.total += count
        self.on_progress(self.done, self.total)

    def advance(self) -> None:
        """Count one item as done."""
        self.done += 1
        self.on_progress(self.done, self.total)

    def count(self, kind: CopiedKind, size: int | None) -> None:
        """Count a copied item by the number of bytes written; None: it was there already."""
        (self.present if size is None else self.written)[kind] += 1
        self.size += size or 0

    def fail(self, path: str, text: str) -> None:
        """Add an error."""
        self.problems.append(Problem(severity="error", path=path, text=text))


class BlobCopy:
    """Copies blobs once each. Blobs that the target has are verified, refreshed and repaired.

    To be made after the documents that refer to blobs were read, whose blobs are stored by then.
    """

    def __init__(
        self, source: Repository, target: Repository, tally: Tally, *, dry_run: bool
    ) -> None:
        self._source = source
        self._target = target
        self._tally = tally
        self._dry_run = dry_run
        self._images = source.stored("images").keys()
        self._there: dict[BlobKind, set[str]] = {
            kind: set(target.stored(kind)) for kind in ("backbones", "exemplars", "images")
        }
        self._failed: dict[str, str] = {}
        self._done: set[str] = set()

    def copy_backbones(self, digests: Collection[str]) -> None:
        """Copy backbones."""
        self._copy("backbones", digests, self._copy_backbone)

    def copy_shards(self, digests: Collection[str]) -> None:
        """Copy shards, and those of their images that are stored."""
        new = {digest for digest in digests if self._source.key("exemplars", digest) not in self}
        self._copy("exemplars", new, partial(self._copy_file, "exemplars"))
        images: set[str] = set()
        for digest in new:
            key = self._source.key("exemplars", digest)
            if key in self._failed:
                continue
            try:
                with reading():
                    images |= self._contents(digest)
            except Corrupt as error:
                self._fail(key, str(error))
        self.copy_images(images)

    def copy_images(self, digests: Collection[str]) -> None:
        """Copy images if they are stored: a fit stores none."""
        stored = self._images & set(digests)
        self._copy("images", stored, partial(self._copy_file, "images"))

    def missing(self, *, backbones: Collection[str], shards: Collection[str]) -> list[str]:
        """Return the keys of blobs that could not be copied."""
        keys = [
            *(self._source.key("backbones", digest) for digest in backbones),
            *(self._source.key("exemplars", digest) for digest in shards),
        ]
        return sorted({key for key in keys if key in self._failed})

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def _copy(
        self, kind: BlobKind, digests: Collection[str], copy: Callable[[str], int | None]
    ) -> None:
        new = sorted(d for d in set(digests) if self._source.key(kind, d) not in self._done)
        self._tally.expect(len(new))
        self._refresh(kind, new)
        attempt = partial(self._attempt, copy)
        with ThreadPoolExecutor(WORKERS[kind]) as pool:
            for digest, result in zip(new, pool.map(attempt, new), strict=True):
                key = self._source.key(kind, digest)
                self._done.add(key)
                if isinstance(result, Corrupt):
                    self._fail(key, str(result))
                else:
                    self._tally.count(_SINGULAR[kind], result)
                self._tally.advance()

    @staticmethod
    def _attempt(copy: Callable[[str], int | None], digest: str) -> int | Corrupt | None:
        try:
            return copy(digest)
        except Corrupt as error:
            return error

    def _refresh(self, kind: BlobKind, digests: Collection[str]) -> None:
        """Refresh the blobs that the target has, so that no garbage collection deletes them."""
        keys = {self._target.key(kind, digest): digest for digest in digests}
        keys = {key: digest for key, digest in keys.items() if digest in self._there[kind]}
        if keys and not self._dry_run:
            self._there[kind] -= {keys[key] for key in self._target.storage.refresh(keys)}

    def _copy_file(self, kind: BlobKind, digest: str) -> int | None:
        """Copy a shard or image; return the bytes written, None: it was there. Raises Corrupt."""
        key = self._source.key(kind, digest)
        if digest in self._there[kind] and _is_intact(self._target.storage, key, digest):
            return None
        with reading():
            content = self._source.storage.read_verified(key, digest)
        if not self._dry_run:
            self._target.storage.put_blob(key, content)
        return len(content)

    def _copy_backbone(self, digest: str) -> int | None:
        """Copy a backbone; return the bytes written, None: it was there. Raises Corrupt."""
        directory = self._source.key("backbones", digest)
        info_key = f"{directory}/backbone.json"
        storage = self._target.storage
        with reading():
            content = self._source.storage.read(info_key)
            info = from_json(content, BackboneInfo, name=info_key)
            if info.digest != digest:
                raise Corrupt(f"{info_key} describes the backbone {info.digest}")
        file = GRAPH if info.has_graph else SPACE
        key = f"{directory}/{file}"
        if digest in self._there["backbones"] and _is_intact(storage, key, digest):
            return put(storage, info_key, content, dry_run=self._dry_run)
        with reading():
            graph = self._source.storage.read_verified(key, digest)
        if not self._dry_run:
            with contextlib.suppress(FileExistsError):  # damaged
                storage.create(directory, {file: graph, "backbone.json": content})
            put(storage, key, graph)
            put(storage, info_key, content)
        return len(graph) + len(content)

    def _contents(self, digest: str) -> set[str]:
        """Return the sha256 of the images of a shard. Raises Corrupt."""
        if digest in self._there["exemplars"]:
            with contextlib.suppress(Corrupt):
                return _contents(self._target, digest)
        return _contents(self._source, digest)

    def _fail(self, key: str, text: str) -> None:
        self._failed[key] = text
        self._tally.fail(key, text)


def put(storage: Storage, key: str, content: bytes, *, dry_run: bool = False) -> int | None:
    """Write a file unless it has this content; return the bytes written, None: it was there."""
    with contextlib.suppress(Corrupt):
        if storage.read(key) == content:
            return None
    if not dry_run:
        storage.write(key, content)
    return len(content)


def _is_intact(storage: Storage, key: str, digest: str) -> bool:
    """Return True if a file has the sha256, by its bytes in the storage and not in a cache."""
    with contextlib.suppress(Corrupt):
        return sha256(storage.read(key)) == digest
    return False


def _contents(repository: Repository, digest: str) -> set[str]:
    found = {row.tobytes().hex() for row in repository.shard(digest).contents}
    return found - {_UNKNOWN}
