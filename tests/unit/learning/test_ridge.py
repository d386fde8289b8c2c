"""Ridge regression: agreement with scikit-learn, and exact addition and removal of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from topwork.learning import ridge as module
from topwork.learning.ridge import Gram, gram, solve

ROWS, WIDTH, CLASSES = 90, 20, 4


def problem(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Return features (N, D), classes (N,) and weights (N,), a few of them 0."""
    rng = np.random.default_rng(seed)
    features = np.abs(rng.normal(1, 1, (ROWS, WIDTH))).astype(np.float32)
    weights = rng.random(ROWS) * (rng.random(ROWS) > 0.1)
    return features, rng.integers(0, CLASSES, ROWS), weights


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_ridge_matches_scikit_learn(strength: float) -> None:
    """Weights and bias match scikit-learn's ridge with sample weights."""
    features, targets, weights = problem(0)
    oracle = Ridge(alpha=1 / strength).fit(
        features.astype(float), np.eye(CLASSES)[targets], sample_weight=weights
    )
    ((found, bias),) = solve(gram(features, targets, CLASSES, weights), [strength])
    np.testing.assert_allclose(found, oracle.coef_, atol=1e-9)
    np.testing.assert_allclose(bias, oracle.intercept_, atol=1e-9)


def test_strengths_are_independent() -> None:
    """The solution of a strength does not depend on other strengths."""
    features, targets, weights = problem(1)
    sums = gram(features, targets, CLASSES, weights)
    together = solve(sums, [0.1, 10.0, 1.0])
    for strength, (found, bias) in zip([0.1, 10.0, 1.0], together, strict=True):
        ((expected, want_bias),) = solve(sums, [strength])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(bias, want_bias)


def test_float32_is_close() -> None:
    """Single precision gives the scores of double precision to 1e-4."""
    features, targets, weights = problem(2)
    sums = gram(features, targets, CLASSES, weights)
    ((exact, bias),) = solve(sums, [10.0])
    ((rough, rough_bias),) = solve(sums, [10.0], dtype=np.float32)
    np.testing.assert_allclose(
        features @ rough.T + rough_bias, features @ exact.T + bias, atol=1e-4
    )


def close(found: Gram, expected: Gram) -> bool:
    """Return True if two Gram matrices are equal up to 1e-10 of their size."""
    return all(
        np.abs(getattr(found, name) - getattr(expected, name)).max()
        <= 1e-10 * (1 + np.abs(getattr(expected, name)).max())
        for name in ("products", "cross_products", "rows", "classes")
    )


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=40))
def test_added_and_removed_rows_leave_no_trace(seed: int, moves: list[int]) -> None:
    """After any additions and removals, the sums are those of the present rows."""
    features, targets, weights = problem(seed)
    present = np.arange(ROWS) < ROWS // 2
    sums = gram(features[present], targets[present], CLASSES, weights[present])
    for row in moves:
        single = slice(row, row + 1)
        part = gram(features[single], targets[single], CLASSES, weights[single])
        sums = sums - part if present[row] else sums + part
        present[row] = not present[row]
    expected = gram(features[present], targets[present], CLASSES, weights[present])
    assert close(sums, expected)
    ((found, _),), ((learnt, _),) = solve(sums, [1.0]), solve(expected, [1.0])
    np.testing.assert_allclose(found, learnt, atol=1e-10 * (1 + np.abs(learnt).max()))


def test_no_rows_give_zero_weights() -> None:
    """If all rows are removed, weights and bias are 0."""
    features, targets, weights = problem(3)
    sums = gram(features, targets, CLASSES, weights)
    ((found, bias),) = solve(sums - sums, [1.0])
    assert not found.any()
    assert not bias.any()


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_block_size_does_not_change_the_sums(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows can be in any order and blocks of any size."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", block)
    features, targets, weights = problem(4)
    rows = np.random.default_rng(0).permutation(ROWS)[:50]
    found = gram(features, targets, CLASSES, weights, rows=rows)
    assert close(found, gram(features[rows], targets[rows], CLASSES, weights[rows]))


def test_centred_features_are_precise_in_float32() -> None:
    """Float32 sums of features far from 0 are precise if the features are centred."""
    features, targets, weights = problem(5)
    features += 1000
    centre = features.mean(axis=0, dtype=np.float64)
    rough = gram(features, targets, CLASSES, weights, centre=centre, dtype=np.float32)
    exact = gram(features - centre, targets, CLASSES, weights)
    assert rough.products.dtype == np.float32
    assert np.abs(rough.products - exact.products).max() < 1e-6 * np.abs(exact.products).max() * 10
