"""Nearest examples of a revision: the largest cosines to an image's features.

Features are kept in an LRU cache bounded by bytes. Those of a revision that is larger than the
cache are computed anew for each image, a block at a time, from memory-mapped shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from topwork.arrays import Float32Array
from topwork.bundle.examples import ExampleIndex
from topwork.bundle.features import TINY, Normaliser
from topwork.bundle.manifest import Manifest
from topwork.errors import Corrupt
from topwork.serving.examples import Detail, Examples, examples_key, readable
from topwork.serving.lru_cache import LruCache

CACHE_BYTES = 256 * 2**20
"""Raising it keeps the features of more examples in memory: 50,000 of width 1,280."""

BLOCK_ROWS = 4096
"""Raising it takes more memory for each call that reads the features of a large revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Example of a revision that is near to an image."""

    digest: str
    """Image digest in hexadecimal."""
    label: str
    name: str
    """File name; empty: unknown."""
    similarity: float
    """Cosine of the features, -1 to 1."""
    preview: bytes
    """A JPEG file; empty if there is none."""


Block = tuple[int, Float32Array]
"""Index of a shard in the manifest, and features (n, D) of length 1 of its next exemplars."""


class NearestExamples:
    """Finds the nearest examples. All state belongs to one event loop."""

    def __init__(self, examples: Examples, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._examples = examples
        self._cache_bytes = cache_bytes
        self._cache: LruCache[list[Block]] = LruCache(
            cache_bytes, weight_of=lambda blocks: sum(rows.nbytes for _, rows in blocks)
        )

    async def nearest(
        self, manifest: Manifest, normaliser: Normaliser, embedding: Float32Array, count: int
    ) -> list[Neighbour]:
        """Return the ``count`` nearest examples, the nearest first. Raises Corrupt, Unavailable."""
        index = await self._examples.index(manifest)

        def blocks() -> Iterator[Block]:
            return unit_blocks(normaliser, self._examples.embeddings(manifest))

        async def find() -> Nearest:
            found: Iterable[Block]
            if len(index) * embedding.nbytes <= self._cache_bytes:
                load = partial(asyncio.to_thread, lambda: list(blocks()))
                found = await self._cache.get(examples_key(manifest), load)
            else:
                found = blocks()
            point = unit(normaliser(embedding[None]))[0]
            return await asyncio.to_thread(most_similar, index, found, point, count)

        nearest = await readable(find)
        details = await self._examples.details(manifest, index, nearest.rows)
        return neighbours(index, nearest, details)


@dataclass(frozen=True, slots=True)
class Nearest:
    """Rows of an index with the largest cosines, descending; equal ones in index order."""

    rows: list[int]
    cosines: list[float]


def unit(features: Float32Array) -> Float32Array:
    """Return features (N, D) scaled to length 1."""
    lengths = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
    return np.asarray(features / np.maximum(lengths, np.float32(TINY)))


def unit_blocks(normaliser: Normaliser, shards: Iterable[Float32Array]) -> Iterator[Block]:
    """Yield the features of the embeddings (n, D) of all shards, BLOCK_ROWS at a time."""
    for part, shard in enumerate(shards):
        for begin in range(0, len(shard), BLOCK_ROWS):
            yield part, unit(normaliser(np.asarray(shard[begin : begin + BLOCK_ROWS])))


def most_similar(
    index: ExampleIndex, blocks: Iterable[Block], point: Float32Array, count: int
) -> Nearest:
    """Return the ``count`` examples that are nearest to features (D,) of length 1.

    Raises Corrupt if the index refers to other exemplars than ``blocks`` are of.
    """
    sizes = np.zeros(int(index.parts.max(initial=-1)) + 1, dtype=np.int64)
    products = []
    for part, rows in blocks:
        products.append(rows @ point)
        if part < len(sizes):
            sizes[part] += len(rows)
    flat = (np.cumsum(sizes) - sizes)[index.parts] + index.rows
    if (index.rows >= sizes[index.parts]).any():
        raise Corrupt("the index of the examples refers to rows that its shards do not have")
    cosines = np.concatenate([np.empty(0, dtype=np.float32), *products])[flat].clip(-1, 1)
    count = min(count, len(cosines))
    if not count:
        return Nearest([], [])
    near = np.flatnonzero(cosines >= np.partition(cosines, -count)[-count])
    near = near[np.argsort(-cosines[near], kind="stable")][:count]
    return Nearest(near.tolist(), cosines[near].tolist())


def neighbours(index: ExampleIndex, nearest: Nearest, details: Sequence[Detail]) -> list[Neighbour]:
    """Return the nearest examples with their details, one for each row."""
    return [
        Neighbour(
            digest=index.digests[row].tobytes().hex(),
            label=index.labels[index.targets[row]],
            name=index.name(row),
            similarity=cosine,
            preview=detail.preview,
        )
        for row, cosine, detail in zip(nearest.rows, nearest.cosines, details, strict=True)
    ]
