"""Embeddings of exemplars in any order, in memory or gathered from memory-mapped shards."""

from __future__ import annotations

import mmap
import threading
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


RELEASED_NUMBERS = 2**26
"""Values that are read before their pages are released: 256 MiB; lowering it reads pages twice."""


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

    The pages of shards are released after RELEASED_NUMBERS, so that they do not count as memory of
    this process; the system's cache may still have them.
    """

    def __init__(self, parts: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]) -> None:
        """Keep ``parts`` of any lengths; ``rows`` (N,) are rows of their concatenation."""
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self._rows = rows
        self._lock = threading.Lock()
        self._read_parts: set[int] = set()
        self._read_numbers = 0

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return len(self._rows), self._parts[0].shape[1]

    def __len__(self) -> int:
        """Return N."""
        return len(self._rows)

    def __getitem__(self, rows: Rows, /) -> NDArray[np.float32]:
        """Return a copy of the embeddings of the selected rows."""
        gathered, read = _gather(self._parts, self._starts, self._rows[rows])
        with self._lock:
            self._read_parts.update(read)
            self._read_numbers += gathered.size
            if self._read_numbers > RELEASED_NUMBERS:
                for part in self._read_parts:
                    _release(self._parts[part])
                self._read_parts.clear()
                self._read_numbers = 0
        return gathered

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
    return _gather(parts, np.cumsum([0, *map(len, parts)]), rows)[0]


def select(embeddings: EmbeddingRows, rows: NDArray[np.int64]) -> EmbeddingRows:
    """Return the selected rows; mapped embeddings stay mapped."""
    if isinstance(embeddings, MappedEmbeddings):
        return embeddings.select(rows)
    return embeddings[rows]


def _gather(
    parts: Sequence[NDArray[np.float32]], starts: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], list[int]]:
    """Return ``rows`` of the concatenated parts, without the concatenation, and the parts used.

    ``starts`` are the first rows of the parts and the number of all rows.
    """
    gathered = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
    is_sorted = bool((rows[1:] >= rows[:-1]).all())
    places = np.arange(len(rows)) if is_sorted else np.argsort(rows, kind="stable")
    sources = rows[places]
    used: list[int] = np.unique(np.searchsorted(starts, sources, side="right") - 1).tolist()
    for part in used:
        first, last = np.searchsorted(sources, starts[part : part + 2]).tolist()
        own = sources[first:last] - starts[part]
        if is_sorted:  # without a second copy
            np.take(parts[part], own, axis=0, out=gathered[first:last], mode="clip")
        else:
            gathered[places[first:last]] = parts[part][own]
    return gathered, used


def _release(part: NDArray[np.float32]) -> None:
    """Drop the pages of a memory-mapped array from this process; they can be read again."""
    base: object = part
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
