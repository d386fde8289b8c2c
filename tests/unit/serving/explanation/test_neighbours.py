"""Nearest examples of a revision."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.pictures import picture

from topwork.bundle.examples import make_index
from topwork.bundle.exemplars import ShardRows
from topwork.bundle.features import make
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.serving.examples import Examples
from topwork.serving.explanation import neighbours as near
from topwork.serving.explanation.neighbours import NearestExamples, most_similar

SQRT = make("sqrt_l2", np.zeros((1, tiny.WIDTH), dtype=np.float32))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with a model of four colours."""
    return tiny.repository(tmp_path_factory.mktemp("neighbours"))


@pytest.mark.parametrize("cache_bytes", [0, near.CACHE_BYTES])
@pytest.mark.parametrize("block_rows", [3, near.BLOCK_ROWS])
def test_nearest_examples_are_those_of_a_full_search(
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    cache_bytes: int,
    block_rows: int,
) -> None:
    """With features in memory, and with features that are computed in blocks for each image."""
    monkeypatch.setattr(near, "BLOCK_ROWS", block_rows)
    manifest = repository.manifest("colours", 1)
    exemplars = repository.exemplars(manifest.exemplars)
    point = tiny.embed_pictures({"blue": [picture("blue", 70)]}).embeddings[0]
    features = SQRT(exemplars.embeddings)
    cosines = features @ SQRT(point[None])[0]
    order = np.argsort(-cosines, kind="stable")[:7]
    nearest = NearestExamples(Examples(repository), cache_bytes=cache_bytes)
    found = asyncio.run(nearest.nearest(manifest, SQRT, point, 7))
    assert [one.digest for one in found] == [
        exemplars.digests[row].tobytes().hex() for row in order
    ]
    assert [one.label for one in found] == [exemplars.labels[exemplars.targets[r]] for r in order]
    assert [one.name for one in found] == [exemplars.names[row] for row in order]
    assert [one.preview for one in found] == [exemplars.thumbnails[row] for row in order]
    np.testing.assert_allclose([one.similarity for one in found], cosines[order], rtol=1e-4)


def test_training_image_is_its_own_nearest_example(repository: Repository) -> None:
    """With a cosine of 1."""
    manifest = repository.manifest("colours", 1)
    exemplars = repository.exemplars(manifest.exemplars)
    nearest = NearestExamples(Examples(repository))
    (first,) = asyncio.run(nearest.nearest(manifest, SQRT, exemplars.embeddings[5], 1))
    assert first.digest == exemplars.digests[5].tobytes().hex()
    assert first.similarity == pytest.approx(1, abs=1e-6)


def test_equal_cosines_are_in_index_order() -> None:
    """Also where the last of several is cut off; more than there are gives all."""
    rows = np.arange(6)
    index = make_index(
        ("a",),
        np.zeros((6, 32), dtype=np.uint8),
        np.zeros(6, dtype=np.int64),
        [""] * 6,
        ShardRows(labels=("a",), targets=rows * 0, parts=rows % 2, rows=rows // 2),
    )
    one, other = np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)
    blocks = [(0, np.stack([one, other, one])), (1, np.stack([one, one, other]))]
    assert most_similar(index, blocks, one, 3).rows == [0, 1, 3]
    assert most_similar(index, blocks, one, 9).rows == [0, 1, 3, 4, 2, 5]
    assert most_similar(index, blocks, one, 0).rows == []
    with pytest.raises(Corrupt, match="rows that its shards do not have"):
        most_similar(index, blocks[:1], one, 3)


def test_deleted_shard_is_corrupt(tmp_path: Path) -> None:
    """The features are not in memory yet."""
    repository = tiny.repository(tmp_path)
    manifest = repository.manifest("colours", 1)
    (repository.root / repository.key("exemplars", manifest.exemplars[1].digest)).unlink()
    nearest = NearestExamples(Examples(repository))
    with pytest.raises(Corrupt, match="is missing"):
        asyncio.run(
            nearest.nearest(replace(manifest), SQRT, np.ones(tiny.WIDTH, dtype=np.float32), 1)
        )
