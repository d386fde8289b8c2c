"""Examples of revisions: indexes in an LRU cache bounded by bytes, filters, and previews."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.examples import ExampleIndex, rows_starting_with, rows_with_name
from topwork.bundle.manifest import Manifest
from topwork.bundle.shards import open_embeddings, open_previews
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, Unavailable
from topwork.serving.lru_cache import Key, LruCache
from topwork.storage import files

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

CACHE_BYTES = 64 * 2**20
"""Raising it keeps more indexes in memory; one of 100,000 examples has about 14 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Text to compare with; with ``prefix`` only the beginning."""

    text: str
    prefix: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleFilter:
    """Filter for lists of examples; None: any value."""

    label: str | None = None
    suspect: bool | None = None
    operation: str | None = None
    """Id of an operation; empty: no operation."""
    name: Pattern | None = None
    digest: Pattern | None = None
    """In hexadecimal, lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """Data of an example that is read from its shard."""

    preview: bytes
    """A JPEG file; empty if there is none."""
    content: str
    """sha256 of the encoded image in hexadecimal; empty if unknown."""
    stored: bool
    """True if the repository has the encoded image."""


class _OpenShard(Protocol[T_co]):
    def __call__(self, path: Path, digest: str, *, verified: bool) -> T_co: ...


class Examples:
    """Reads the examples of revisions. All state belongs to one event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._indexes: LruCache[ExampleIndex] = LruCache(CACHE_BYTES, weight_of=ExampleIndex.size)
        self._verified: dict[str, tuple[int, int, int]] = {}
        """State of each shard's file when its sha256 was right."""

    async def index(self, manifest: Manifest) -> ExampleIndex:
        """Return the index of a revision's examples. Raises Corrupt, Unavailable."""
        load = partial(asyncio.to_thread, self._repository.examples, manifest)
        return await self._indexes.get(examples_key(manifest), partial(readable, load))

    async def details(
        self, manifest: Manifest, index: ExampleIndex, rows: Sequence[int]
    ) -> list[Detail]:
        """Return the details of the examples in these rows. Raises Corrupt, Unavailable."""
        read = partial(asyncio.to_thread, self.read_details, manifest, index, rows)
        return await readable(read)

    def read_details(
        self, manifest: Manifest, index: ExampleIndex, rows: Sequence[int]
    ) -> list[Detail]:
        """See ``details``; may be called in any thread. Raises Corrupt, OSError."""
        # Files are mapped only while they are read: a deleted one must not survive in this process.
        opened = {
            part: self._open(manifest.exemplars[part].digest, open_previews)
            for part in np.unique(index.parts[list(rows)]).tolist()
        }
        contents = {}
        for row in rows:
            shard, place = opened[int(index.parts[row])], int(index.rows[row])
            if place >= len(shard.contents):
                raise Corrupt(f"example {row} of {manifest.model!r} is not in its shard")
            content = shard.contents[place].tobytes()
            contents[row] = content.hex() if any(content) else "", shard.preview(place)
        kept = self._repository.stored_images({digest for digest, _ in contents.values() if digest})
        return [
            Detail(preview=preview, content=digest, stored=digest in kept)
            for digest, preview in map(contents.__getitem__, rows)
        ]

    def embeddings(self, manifest: Manifest) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings (n, D) of each shard of a revision, in the manifest's order.

        May be called in any thread. Raises Corrupt, OSError.
        """
        for ref in manifest.exemplars:
            yield self._open(ref.digest, open_embeddings)

    def _open(self, digest: str, open_file: _OpenShard[T]) -> T:
        """Open a shard; its sha256 is computed only if the file has changed since it was right."""

        def open_known(path: Path) -> T:
            try:
                stat = path.stat()
            except FileNotFoundError:
                raise Corrupt(f"exemplars/{digest}.npz is missing") from None
            state = stat.st_ino, stat.st_mtime_ns, stat.st_size
            opened = open_file(path, digest, verified=self._verified.get(digest) == state)
            self._verified[digest] = state
            return opened

        return self._repository.open_local(digest, open_known)


def select(index: ExampleIndex, manifest: Manifest, wanted: ExampleFilter) -> NDArray[np.int64]:
    """Return the rows of the examples that match, the most doubtful first.

    Suspects by suspicion, then the others by the probability of their label, then examples without
    one; examples that are equal in this by image digest, then label.
    """
    found = np.ones(len(index), dtype=bool)
    if wanted.label is not None:
        known = wanted.label in index.labels
        found &= index.targets == (index.labels.index(wanted.label) if known else -1)
    if wanted.suspect is not None:
        found &= (index.suspicion > 0) == wanted.suspect
    if wanted.operation is not None:
        refs = enumerate(manifest.exemplars)
        found &= np.isin(
            index.parts, [part for part, ref in refs if ref.operation == wanted.operation]
        )
    if wanted.digest is not None:
        found &= rows_starting_with(index, wanted.digest.text)
        found &= wanted.digest.prefix or len(wanted.digest.text) == 64
    if wanted.name is not None:
        found &= rows_with_name(index, wanted.name.text, prefix=wanted.name.prefix)
    rows = np.flatnonzero(found)
    return np.asarray(
        rows[np.lexsort((np.nan_to_num(index.probabilities[rows], nan=2), -index.suspicion[rows]))]
    )


def examples_key(manifest: Manifest) -> Key:
    """Return the key in a cache of what is derived from a revision's examples."""
    # A model that is deleted and fitted again reuses revision numbers.
    stored = manifest.examples or files.sha256(repr(manifest.exemplars).encode())
    return f"{manifest.model} {stored}", manifest.revision


async def readable(read: Callable[[], Awaitable[T]]) -> T:
    """Convert the errors of a file system that is unavailable for a moment to Unavailable."""
    try:
        return await read()
    except OSError as error:
        text = f"the examples cannot be read now: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error
