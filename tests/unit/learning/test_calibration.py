"""The temperature is the best there is, and losses are the textbook's."""

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

LARGEST = 1000


def scaled_loss(
    inverse: float,
    logits: NDArray[np.floating],
    targets: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> float:
    """Return the weighted loss of logits at an inverse temperature, against Platt's aims."""
    counts, classes = np.bincount(targets), logits.shape[1]
    doubt = 1 / (counts[targets] + 2)
    aims = np.repeat(doubt[:, None] / (classes - 1), classes, axis=1)
    aims[np.arange(len(targets)), targets] = 1 - doubt
    log_p = log_softmax(inverse * logits.astype(float), axis=1)
    return float(-(weights @ (aims * log_p).sum(axis=1)) / weights.sum())


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 6),
    st.integers(5, 80),
    st.floats(-1, 8),
    st.floats(-2.5, 2.5),
)
def test_the_temperature_is_the_best_there_is(
    seed: int, classes: int, rows: int, signal: float, exponent: float
) -> None:
    """None from 1/1000 to 1000 has less loss, be the logits good, useless or inverted."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    noisy = rng.normal(size=(rows, classes)) + signal * np.eye(classes)[targets]
    logits = np.asarray(10**exponent * noisy, dtype=np.float32)
    weights = balanced_weights(targets, classes)
    best = minimize_scalar(
        lambda log: scaled_loss(np.exp(log), logits, targets, weights),
        bounds=(-np.log(LARGEST), np.log(LARGEST)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    found = find_temperature(logits, targets, weights)
    assert 1 / LARGEST <= found <= LARGEST
    assert scaled_loss(1 / found, logits, targets, weights) <= best.fun + 1e-5 * (1 + best.fun)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_the_temperature_takes_the_scale_out(scale: float) -> None:
    """Logits that are a hundred times as large give a temperature a hundred times as high."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60)
    logits = (rng.normal(size=(60, 3)) + 2 * np.eye(3)[targets]).astype(np.float32)
    weights = np.ones(60)
    want = scale * find_temperature(logits, targets, weights)
    found = find_temperature(logits * np.float32(scale), targets, weights)
    assert found == pytest.approx(want, rel=1e-4)


def test_there_is_nothing_to_choose_without_weight_or_for_one_class() -> None:
    """Rows that do not count, or a single class, leave the temperature at 1."""
    logits = np.array([[3.0, 1.0], [0.0, 2.0]], dtype=np.float32)
    targets = np.array([0, 1])
    assert find_temperature(logits, targets, np.zeros(2)) == 1
    assert find_temperature(logits[:, :1], np.zeros(2, dtype=np.int64), np.ones(2)) == 1


def test_few_images_are_never_certain() -> None:
    """Four images that are all told apart leave a doubt of about a fourth."""
    logits = np.array([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2, dtype=np.float32)
    targets = np.array([0, 0, 1, 1])
    found = find_temperature(logits, targets, np.ones(4))
    assert 1 / (1 + np.exp(-1 / found)) == pytest.approx(3 / 4, abs=1e-3)


def test_losses_are_scipys() -> None:
    """They are negative log softmaxes of the targets, for logits of any size."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(50, 4)) * 10.0 ** rng.integers(-3, 4, (50, 1))).astype(np.float32)
    targets = rng.integers(0, 4, 50)
    want = -log_softmax(logits.astype(float), axis=1)[np.arange(50), targets]
    np.testing.assert_allclose(log_losses(logits, targets), want, rtol=1e-5, atol=1e-5)
