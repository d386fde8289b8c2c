"""Grouping: clusters of embeddings, and the whitened space that they are found in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topwork.bundle import exemplars
from topwork.bundle.exemplars import Exemplars
from topwork.learning.grouping import group, learn_space

WIDTH = 32


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def blobs(
    rng: np.random.Generator, centres: NDArray[np.float64], count: int
) -> NDArray[np.float32]:
    """Return ``count`` positive rows near each centre, which differ most in the first direction."""
    noise = rng.normal(0, 0.05, (len(centres), count, WIDTH))
    noise[..., 0] = rng.normal(0, 1.5, noise.shape[:2])
    return np.asarray(np.abs(centres[:, None] + noise).reshape(-1, WIDTH), dtype=np.float32)


def known_classes(rng: np.random.Generator, centres: NDArray[np.float64]) -> Exemplars:
    """Return 20 exemplars of each centre."""
    rows = blobs(rng, centres, 20)
    digests = rng.integers(0, 256, (len(rows), 32), dtype=np.uint8)
    labels = [f"class {number // 20}" for number in range(len(rows))]
    return exemplars.make(rows, digests, digests, labels)


def test_groups_are_the_clusters_without_stray_rows() -> None:
    """The largest group comes first; rows that are like no other are in no group."""
    rng = np.random.default_rng(0)
    axes = np.eye(WIDTH)
    near = [axes[0] + rng.normal(0, 0.05, WIDTH) for _ in range(8)]
    others = [axes[1] + rng.normal(0, 0.05, WIDTH) for _ in range(5)]
    rows = unit(np.stack([others[0], axes[9], *near, *others[1:], axes[10], axes[11]]))
    assert group(rows, alike=0.5) == [[*range(2, 10)], [0, *range(10, 14)]]


def test_too_few_rows_have_no_group() -> None:
    """Fewer rows than the smallest group, or none, give no groups."""
    assert group(np.empty((0, WIDTH), dtype=np.float32), alike=0.5) == []
    assert group(unit(np.ones((4, WIDTH), dtype=np.float32)), alike=0.5) == []


def test_equal_rows_are_one_group() -> None:
    """Ties do not break the merging."""
    assert group(unit(np.ones((7, WIDTH), dtype=np.float32)), alike=0.5) == [[*range(7)]]


def test_new_class_is_one_group_in_the_whitened_space() -> None:
    """Images of a new class group together despite a direction in which all classes vary."""
    rng = np.random.default_rng(1)
    centres = rng.uniform(0.5, 2, (5, WIDTH))
    space = learn_space(known_classes(rng, centres[:3]))
    rows = space(blobs(rng, centres[3:], 12))
    assert group(rows, alike=space.alike) == [[*range(12)], [*range(12, 24)]]


def test_space_of_one_image_a_class_does_not_fail() -> None:
    """Without two images of a class the similarity of equal images is the level."""
    rng = np.random.default_rng(2)
    rows = blobs(rng, rng.uniform(0.5, 2, (2, WIDTH)), 1)
    digests = rng.integers(0, 256, (2, 32), dtype=np.uint8)
    space = learn_space(exemplars.make(rows, digests, digests, ["a", "b"]))
    assert space.known_similarity == 1.0
    assert np.isfinite(space(rows)).all()
