"""The projection separates classes; it does not follow the largest variance."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from topwork.report.projection import project


def test_classes_are_separated_despite_larger_variance() -> None:
    """Small class differences are found among dimensions of large, unrelated variance."""
    embeddings, targets = _cloud(classes=3, images=100, gap=3.0)
    noise = np.random.default_rng(1).normal(0, 5, (300, 3)).astype(np.float32)
    spread = np.column_stack([embeddings, noise])
    spread = np.column_stack([spread, np.full(300, 40, dtype=np.float32)])  # like lengths
    assert _apart(project(spread, targets).places, targets) > 0.95


def test_random_labels_are_not_separated() -> None:
    """Random labels stay mixed, even with more dimensions than images."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(400, 800)).astype(np.float32)
    targets = rng.integers(0, 2, 400)
    assert _apart(project(embeddings, targets).places, targets) < 0.65


@pytest.mark.parametrize("classes", [1, 2, 3, 60])
def test_project_returns_finite_coordinates(classes: int) -> None:
    """Any number of classes gives two finite coordinates and a share between 0 and 1."""
    found = project(*_cloud(classes=classes, images=5, gap=2.0))
    assert found.places.shape == (5 * classes, 2)
    assert np.isfinite(found.places).all()
    assert 0 <= found.shown <= 1


def test_two_classes_use_both_axes() -> None:
    """With two classes, the second axis shows variance within the classes."""
    found = project(*_cloud(classes=2, images=50, gap=2.0))
    assert (found.places.std(axis=0) > 0.1).all()
    assert found.shown == pytest.approx(1)


def test_equal_embeddings_have_the_same_position() -> None:
    """Equal embeddings are all at the origin."""
    found = project(np.ones((6, 4), dtype=np.float32), np.array([0, 0, 1, 1, 2, 2]))
    assert np.abs(found.places).max() < 1e-6
    assert found.shown == 0


def test_projection_has_fixed_signs() -> None:
    """The coordinate of largest magnitude is positive on both axes."""
    places = project(*_cloud(classes=4, images=20, gap=2.0)).places
    furthest = np.abs(places).argmax(axis=0)
    assert (places[furthest, [0, 1]] > 0).all()


def test_projection_does_not_depend_on_the_order_of_columns() -> None:
    """The columns of embeddings in another order give the same map."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(300, 200)).astype(np.float32)
    targets = rng.integers(0, 3, 300)
    found = project(embeddings[:, rng.permutation(200)], targets)
    np.testing.assert_allclose(found.places, project(embeddings, targets).places, atol=1e-3)


def _cloud(
    *, classes: int, images: int, gap: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return embeddings (N, 12) around class centres, and their classes."""
    rng = np.random.default_rng(classes)
    targets = np.repeat(np.arange(classes), images)
    centres = rng.normal(0, gap, (classes, 12))
    return (centres[targets] + rng.normal(0, 1, (len(targets), 12))).astype(np.float32), targets


def _apart(places: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Return the accuracy of the nearest neighbours, half of the images against the others."""
    neighbours = KNeighborsClassifier(5).fit(places[::2], targets[::2])
    return float(neighbours.score(places[1::2], targets[1::2]))
