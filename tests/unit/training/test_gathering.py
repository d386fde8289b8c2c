"""Embeddings that are gathered row by row are the rows in order, in memory or in files."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from topwork.bundle import embedding_rows, exemplars
from topwork.bundle.embedding_rows import MappedEmbeddings
from topwork.training import gathering
from topwork.training.gathering import GatheredEmbeddings

ROWS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


def gathered(monkeypatch: pytest.MonkeyPatch, *, limit: int) -> GatheredEmbeddings:
    """Return ROWS in blocks of 4, of which ``limit`` values may be in memory."""
    monkeypatch.setattr(gathering, "BLOCK_ROWS", 4)
    monkeypatch.setattr(gathering, "MAX_NUMBERS", limit)
    found = GatheredEmbeddings()
    for row in ROWS:
        found.append(row)
    return found


@pytest.mark.parametrize(("limit", "files"), [(100, 0), (24, 1), (0, 3)])
def test_parts_are_the_rows_in_order(
    monkeypatch: pytest.MonkeyPatch, limit: int, files: int
) -> None:
    """Blocks beyond the limit are in files; the last one has the remaining rows."""
    parts = gathered(monkeypatch, limit=limit).parts()
    assert [len(part) for part in parts] == [4, 4, 3]
    assert (np.concatenate(parts) == ROWS).all()
    assert sum(is_mapped(part) for part in parts) == files


def test_large_sets_stay_in_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exemplars of a large set map the parts, in the order of the exemplars of a small set."""
    parts = gathered(monkeypatch, limit=0).parts()
    digests = np.random.default_rng(1).integers(0, 256, (11, 32)).astype(np.uint8)
    labels = [*"aab" * 4][:11]
    small = exemplars.make(ROWS, digests, digests, labels)
    monkeypatch.setattr(embedding_rows, "MAX_NUMBERS", 0)
    large = exemplars.make(parts, digests, digests, labels)
    assert isinstance(large.embedding_rows, MappedEmbeddings)
    assert (large.embeddings == small.embeddings).all()
    assert (large.digests == small.digests).all()


def is_mapped(part: object) -> bool:
    """Return True if an array is in a file."""
    while isinstance(part, np.ndarray):
        part = part.base
    return isinstance(part, mmap.mmap)
