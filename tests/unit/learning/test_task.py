"""Learning task: supports, nearest points, samples and class sums."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.utils.class_weight import compute_sample_weight

from topwork.arrays import Float32Array
from topwork.learning import task as module
from topwork.learning.parallel import Threads
from topwork.learning.task import Task, balanced_weights, make_support, take_turns


def features(rows: int, width: int, *, seed: int = 0) -> Float32Array:
    """Return features of length 1 whose variances decrease as those of embeddings do."""
    rng = np.random.default_rng(seed)
    found = 1 + rng.normal(size=(rows, width)) * 3 / np.sqrt(1 + np.arange(width))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def test_balanced_weights_match_scikit_learn() -> None:
    """Balanced weights match scikit-learn's, also if a class is absent."""
    targets = np.array([0, 0, 0, 2, 2, 4])
    np.testing.assert_allclose(
        balanced_weights(targets, 5), compute_sample_weight("balanced", targets)
    )


@pytest.mark.parametrize(("rows", "width"), [(60, 300), (300, 60), (400, 500)])
def test_support_explains_as_much_variance_as_pca(rows: int, width: int) -> None:
    """The points have the variance of scikit-learn's components within 0.2 %."""
    known = features(rows, width)
    directions = min(module.DIRECTIONS, rows, width)
    found = make_support(known)
    oracle = PCA(min(directions, rows - 1), svd_solver="full").fit(known.astype(float))
    assert found.points.shape == (rows, directions)
    expected = oracle.explained_variance_.sum() * (rows - 1)
    assert np.square(found.points).sum() == pytest.approx(expected, rel=2e-3)
    np.testing.assert_allclose(found.projection.T @ found.projection, np.eye(directions), atol=2e-3)


@pytest.mark.parametrize(("rows", "width"), [(60, 300), (200, 100)])
def test_distances_are_exact_for_few_dimensions(rows: int, width: int) -> None:
    """With at most DIRECTIONS rows or columns, distances of known and new images are exact."""
    known, new = features(rows, width), features(20, width, seed=1)
    for images in (known, new):
        found = make_support(known).distances(images)
        np.testing.assert_allclose(found, cdist(images, known, "sqeuclidean"), atol=2e-3)


def test_support_fits_into_16_bits() -> None:
    """Rounding to 16 bits changes neither projection nor points."""
    found = make_support(features(50, 80))
    for values in (found.projection, found.points):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values.astype(np.float16).astype(np.float32), values)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 7])
def test_equal_features_have_a_support(rows: int, value: float) -> None:
    """Equal images have distance 0, and other images a larger distance."""
    known = np.full((rows, 12), value, dtype=np.float32)
    support = make_support(known)
    np.testing.assert_allclose(support.distances(known), 0, atol=1e-6)
    np.testing.assert_allclose(support.distances(known + 1), 12, rtol=1e-3)


def test_large_support_is_balanced_across_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A support of many rows has all rows of small classes, in order."""
    monkeypatch.setattr(module, "SUPPORT_ROWS", 30)
    targets = np.array([0] * 50 + [1] * 5 + [2] * 50)
    rows = Task(features=features(105, 8), targets=targets, classes=3).support_rows
    assert (np.diff(rows) > 0).all()
    assert np.bincount(targets[rows]).tolist() == [13, 5, 12]


@pytest.mark.parametrize("max_points", [59, 60])
@pytest.mark.parametrize("count", [1, 2])
def test_nearest_matches_brute_force(
    max_points: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances match in blocks and threads; the distance to an empty cell is infinite."""
    monkeypatch.setattr(module, "_BLOCK_DISTANCES", 200)
    task = Task(features=features(60, 9), targets=np.zeros(60, dtype=np.int64), classes=1)
    cells = np.random.default_rng(1).choice([0, 2, 3], 60)
    support = task.support
    monkeypatch.setattr(module, "SUPPORT_ROWS", max_points)
    with Threads(count) as threads:
        found = task.nearest(cells, 5, threads)
    between = support.distances(task.features)
    expected = np.full((60, 5), np.inf)
    for cell in (0, 2, 3):
        expected[:, cell] = between[:, cells == cell].min(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 7, 30, 104])
def test_take_turns_matches_brute_force(count: int) -> None:
    """Classes take turns with their first rows."""
    targets = np.random.default_rng(0).choice(4, 105, p=[0.6, 0.3, 0.07, 0.03])
    turns = sorted(range(105), key=lambda row: ((targets[:row] == targets[row]).sum(), row))
    assert take_turns(targets, count).tolist() == sorted(turns[:count])


@pytest.mark.parametrize("rows", [3, 50])
def test_class_sums_match_brute_force(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in blocks match; a class without rows has 0."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 16)
    known, targets = features(60, 9), np.arange(60) % 4
    chosen = np.random.default_rng(0).permutation(60)[:rows]
    found = Task(features=known, targets=targets, classes=5).class_sums(chosen)
    expected = np.zeros((5, 9))
    np.add.at(expected, targets[chosen], known[chosen])
    np.testing.assert_allclose(found, expected, atol=1e-6)
