"""Embeddings of exemplars in any order, in memory or gathered from memory-mapped shards."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = slice | NDArray[np.int64] | NDArray[np.bool_]
"""Selection of rows, as NumPy's indexing takes it."""

MAX_NUMBERS = 2**28
"""Largest number of embeddings' and scores' values in memory; raising it makes solves use more.

A change of 100,000 exemplars of 1,000 classes, with 0.85 times as many, took 3.5 GiB.
"""


class EmbeddingRows(Protocol):
    """Embeddings (N, D), of which blocks are read; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, rows: Rows, /) -> NDArray[np.float32]:
        """Return the embeddings of the selected rows."""


class MappedEmbeddings:
    """Embeddings (N, D) that stay in memory-mapped shards; each block is copied when it is read.

    The pages of a shard are released after reading, so that they do not count as memory of this
    process; the system's cache may still have them.
    """

    def __init__(self, parts: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]) -> None:
        """Keep ``parts`` of any lengths; ``rows`` (N,) are rows of their concatenation."""
        self._parts = parts
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return len(self._rows), self._parts[0].shape[1]

    def __len__(self) -> int:
        """Return N."""
        return len(self._rows)

    def __getitem__(self, rows: Rows, /) -> NDArray[np.float32]:
        """Return a copy of the embeddings of the selected rows."""
        return _gather(self._parts, self._rows[rows], release=True)

    def select(self, rows: NDArray[np.int64]) -> MappedEmbeddings:
        """Return the selected rows without reading them."""
        return MappedEmbeddings(self._parts, self._rows[rows])


def is_large(rows: int, width: int, classes: int) -> bool:
    """Return True if the embeddings and scores of a set exceed MAX_NUMBERS."""
    return rows * (width + classes) > MAX_NUMBERS


def collect(
    parts: Sequence[NDArray[np.float32]], rows: NDArray[np.int64], classes: int
) -> EmbeddingRows:
    """Return ``rows`` of the concatenated parts: a copy, or mapped if the set is large."""
    if is_large(len(rows), parts[0].shape[1], classes):
        return MappedEmbeddings(parts, rows)
    return _gather(parts, rows)


def select(embeddings: EmbeddingRows, rows: NDArray[np.int64]) -> EmbeddingRows:
    """Return the selected rows; mapped embeddings stay mapped."""
    if isinstance(embeddings, MappedEmbeddings):
        return embeddings.select(rows)
    return embeddings[rows]


def _gather(
    parts: Sequence[NDArray[np.float32]], rows: NDArray[np.int64], *, release: bool = False
) -> NDArray[np.float32]:
    """Return ``rows`` of the concatenated parts, without making the concatenation.

    ``release`` drops the pages of memory-mapped parts after reading.
    """
    gathered = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
    starts = np.cumsum([0, *map(len, parts)])
    places = np.argsort(rows, kind="stable")
    sources = rows[places]
    for part in np.unique(np.searchsorted(starts, sources, side="right") - 1).tolist():
        first, last = np.searchsorted(sources, starts[part : part + 2]).tolist()
        gathered[places[first:last]] = parts[part][sources[first:last] - starts[part]]
        if release:
            _release(parts[part])
    return gathered


def _release(part: NDArray[np.float32]) -> None:
    """Drop the pages of a memory-mapped array from this process; they can be read again."""
    base: object = part
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
