"""Head: logits, probabilities and out-of-distribution detection match their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel

from topwork.arrays import Float32Array
from topwork.bundle.features import make
from topwork.bundle.head import Fourier, Head, Kernel, Scorer, Support, Unknown, softmax

WIDTH = 64


def embeddings(rows: int = 200, *, seed: int = 1) -> Float32Array:
    """Return random embeddings of both signs, with some columns of zeros."""
    found = np.random.default_rng(seed).normal(0, 1, (rows, WIDTH))
    found[:, ::7] = 0
    return found.astype(np.float32)


def head(classes: int = 5, *, seed: int = 0, temperature: float = 0.7) -> Head:
    """Return a random head with logits of a realistic size."""
    rng = np.random.default_rng(seed)
    return Head(
        normaliser=make("sqrt_l2", embeddings()),
        scorer=Scorer(
            weights=rng.normal(0, 1, (classes, WIDTH)).astype(np.float32),
            bias=rng.normal(0, 1, classes).astype(np.float32),
        ),
        temperature=temperature,
    )


def support(points: int = 30, directions: int = WIDTH) -> Support:
    """Return a support whose projection selects the first axes."""
    rng = np.random.default_rng(3)
    return Support(
        centre=rng.normal(0, 0.3, WIDTH).astype(np.float32),
        projection=np.eye(WIDTH, directions, dtype=np.float32),
        points=rng.normal(0, 0.1, (points, directions)).astype(np.float32),
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_probabilities_sum_to_one(temperature: float) -> None:
    """Probabilities of an image are not negative and sum to 1 at any temperature."""
    found = head(temperature=temperature).probabilities(embeddings())
    assert found.dtype == np.float32
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1, dtype=np.float64), 1, atol=1e-6)


def test_zero_embedding_gives_the_bias() -> None:
    """The probabilities of an embedding of zeros are those of the bias."""
    zeros = np.zeros((2, WIDTH), dtype=np.float32)
    want = softmax((head().scorer.bias / np.float32(head().temperature))[None].repeat(2, axis=0))
    np.testing.assert_allclose(head().probabilities(zeros), want, atol=1e-6)


def test_temperature_divides_the_logits() -> None:
    """Twice the temperature gives half the logits."""
    rows = embeddings()
    cool, warm = head(temperature=0.5), head(temperature=1.0)
    np.testing.assert_allclose(cool.logits(rows), 2 * warm.logits(rows), rtol=1e-6)
    features = warm.normaliser(rows)
    want = features @ warm.scorer.weights.T + warm.scorer.bias
    np.testing.assert_allclose(warm.logits(rows), want, rtol=1e-6)


def test_softmax_of_large_logits_is_finite() -> None:
    """Logits of any size give finite probabilities."""
    found = softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize("directions", [8, WIDTH])
def test_support_distances_are_squared_euclidean(directions: int) -> None:
    """Distances include the part of the features outside the projection."""
    known, features = support(directions=directions), embeddings(20) / np.float32(8)
    points = known.centre + known.points @ known.projection.T
    want = cdist(features, points, "sqeuclidean")
    np.testing.assert_allclose(known.distances(features), want, atol=1e-5)


def test_distance_of_a_point_to_itself_is_zero() -> None:
    """Rounding gives no negative distances."""
    known = support()
    itself = known.centre + known.points @ known.projection.T
    found = known.distances(itself).diagonal()
    assert (found >= 0).all()
    assert found.max() < 1e-5


def test_support_of_selected_points() -> None:
    """A support of selected points has their distances, in the order of the selection."""
    known, features = support(), embeddings(20)
    some = np.array([7, 2, 9])
    np.testing.assert_allclose(
        known[some].distances(features), known.distances(features)[:, some], rtol=1e-5
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_kernel_equals_scikit_learn(gamma: float) -> None:
    """The kernel equals scikit-learn's RBF kernel to the points."""
    known, features = support(), embeddings(20) / np.float32(8)
    points = known.centre + known.points @ known.projection.T
    want = rbf_kernel(features, points, gamma=gamma)
    np.testing.assert_allclose(Kernel(support=known, gamma=gamma)(features), want, atol=1e-5)


def test_fourier_features_have_the_documented_scale() -> None:
    """The mean square of 2,000 Fourier features is 1 / 2,000."""
    rng = np.random.default_rng(0)
    waves = Fourier(
        projection=rng.normal(0, 1.4, (WIDTH, 2000)).astype(np.float32),
        phase=rng.uniform(0, 2 * np.pi, 2000).astype(np.float32),
    )
    found = waves(embeddings(50))
    assert found.shape == (50, 2000)
    assert np.square(found).sum(axis=1) == pytest.approx(1, abs=0.1)


# Out-of-distribution detection


def unknown() -> Unknown:
    """Return a detector with weights of realistic signs."""
    return Unknown(
        support=support(),
        logit_weight=-0.5,
        logit_bias=np.array([0.5, 1.5], dtype=np.float32),
        distance_weight=3.0,
        distance_bias=-2.0,
        threshold=0.8,
    )


def test_unknown_is_the_greater_of_two_probabilities() -> None:
    """One is of the highest logit, with its class's bias; the other is of the distance."""
    logits = np.array([[1.0, 2.0], [3.0, -1.0], [3.0, -1.0]], dtype=np.float32)
    distances = np.array([0.1, 0.1, 2.0], dtype=np.float32)
    score = np.array([1.5 - 0.5 * 2, 0.5 - 0.5 * 3, 3 * 2 - 2])
    found = unknown().probabilities(logits, distances)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-score)), rtol=1e-6)


def test_unknown_of_extreme_values_is_finite() -> None:
    """Extreme logits and distances give probabilities without overflow."""
    logits = np.array([[1e20, 0], [-1e20, -1e20], [1e20, 0]], dtype=np.float32)
    found = unknown().probabilities(logits, np.array([-1e20, 0.0, 1e30], dtype=np.float32))
    np.testing.assert_allclose(found, [0, 1, 1], atol=1e-6)


def test_head_without_detector_returns_zero() -> None:
    """Without a detector the unknown probability is 0."""
    assert head().unknown_probabilities(embeddings(3)).tolist() == [0, 0, 0]
