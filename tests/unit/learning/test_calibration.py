"""Calibration: the temperature is optimal, and log losses match SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from topwork.learning.calibration import find_temperature, log_losses
from topwork.learning.task import balanced_weights

MAX_TEMPERATURE = 1000


def scaled_loss(
    inverse: float,
    logits: NDArray[np.floating],
    targets: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> float:
    """Return the weighted loss at an inverse temperature with Platt's targets and the prior."""
    rows, classes = logits.shape
    smoothing = 1 / (rows + 2)
    right = np.eye(classes, dtype=bool)[targets]
    target_probabilities = np.where(right, 1 - smoothing, smoothing / (classes - 1))
    log_p = log_softmax(inverse * logits.astype(float), axis=1)
    loss = float(-(weights @ (target_probabilities * log_p).sum(axis=1)))
    differences = logits[right].astype(float)[:, None] - logits[~right].reshape(rows, -1)
    quality = np.clip(differences.mean() / differences.std(), 0.1, 1)
    deviation = np.log(inverse * differences.min(axis=1).std() / (2 * quality)) / 0.3
    return float((loss + deviation**2 / 2) / weights.sum())


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 6),
    st.integers(5, 80),
    st.floats(-1, 8),
    st.floats(-2.5, 2.5),
)
def test_temperature_is_optimal(
    seed: int, classes: int, rows: int, signal: float, exponent: float
) -> None:
    """No temperature from 1/1000 to 1000 has less loss, for good, useless or inverted logits."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    noisy = rng.normal(size=(rows, classes)) + signal * np.eye(classes)[targets]
    logits = np.asarray(10**exponent * noisy, dtype=np.float32)
    weights = balanced_weights(targets, classes)
    best = minimize_scalar(
        lambda log: scaled_loss(np.exp(log), logits, targets, weights),
        bounds=(-np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    found = find_temperature(logits, targets, weights)
    assert 1 / MAX_TEMPERATURE <= found <= MAX_TEMPERATURE
    assert scaled_loss(1 / found, logits, targets, weights) <= best.fun + 1e-5 * (1 + best.fun)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_temperature_is_proportional_to_the_scale_of_logits(scale: float) -> None:
    """Logits that are 100 times as large give a temperature 100 times as high."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60)
    logits = (rng.normal(size=(60, 3)) + 2 * np.eye(3)[targets]).astype(np.float32)
    weights = np.ones(60)
    want = scale * find_temperature(logits, targets, weights)
    found = find_temperature(logits * np.float32(scale), targets, weights)
    assert found == pytest.approx(want, rel=1e-4)


def test_temperature_is_1_without_weight_or_for_one_class() -> None:
    """Rows without weight, or a single class, give a temperature of 1."""
    logits = np.array([[3.0, 1.0], [0.0, 2.0]], dtype=np.float32)
    targets = np.array([0, 1])
    assert find_temperature(logits, targets, np.zeros(2)) == 1
    assert find_temperature(logits[:, :1], np.zeros(2, dtype=np.int64), np.ones(2)) == 1


def test_few_images_are_never_certain() -> None:
    """Four correctly classified images give a probability of 5/6."""
    logits = np.array([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2, dtype=np.float32)
    targets = np.array([0, 0, 1, 1])
    found = find_temperature(logits, targets, np.ones(4))
    assert 1 / (1 + np.exp(-1 / found)) == pytest.approx(5 / 6, abs=1e-3)


def test_useless_scores_are_not_trusted() -> None:
    """Scores without a relation to the classes give about the same probability for each."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 2)).astype(np.float32)
    targets = rng.permutation(np.repeat([0, 1], 10))
    found = find_temperature(logits, targets, np.ones(20))
    highest = np.exp(log_softmax(logits / found, axis=1)).max(axis=1)
    assert highest.mean() < 0.6


def test_few_images_that_are_all_right_have_the_usual_temperature() -> None:
    """Margins of ten images that are all right have a standard deviation of about 2."""
    rng = np.random.default_rng(0)
    margins = rng.uniform(1, 5, 10)
    logits = np.stack([margins, np.zeros(10)], axis=1).astype(np.float32)
    found = find_temperature(logits, np.zeros(10, dtype=np.int64), np.ones(10))
    assert 1.4 < (margins / found).std() < 2.2


def test_losses_match_scipy() -> None:
    """Losses are negative log softmaxes of the targets, for logits of any size."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(50, 4)) * 10.0 ** rng.integers(-3, 4, (50, 1))).astype(np.float32)
    targets = rng.integers(0, 4, 50)
    want = -log_softmax(logits.astype(float), axis=1)[np.arange(50), targets]
    np.testing.assert_allclose(log_losses(logits, targets), want, rtol=1e-5, atol=1e-5)


def test_many_small_classes_are_not_timid() -> None:
    """The number of all images counts, not that of a class: 50 classes of 2 images, all right."""
    targets = np.repeat(np.arange(50), 2)
    logits = np.eye(50, dtype=np.float32)[targets]
    scaled = logits / np.float32(find_temperature(logits, targets, np.ones(100)))
    highest = np.exp(log_softmax(scaled.astype(float), axis=1)).max(axis=1)
    np.testing.assert_allclose(highest, 101 / 102, atol=1e-3)
