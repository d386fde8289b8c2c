"""Ridge regression is scikit-learn's, and rows come and go without a trace."""

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
def test_it_is_scikit_learns(strength: float) -> None:
    """Weights and free bias are those of scikit-learn's ridge with sample weights."""
    features, targets, weights = problem(0)
    oracle = Ridge(alpha=1 / strength).fit(
        features.astype(float), np.eye(CLASSES)[targets], sample_weight=weights
    )
    ((found, bias),) = solve(gram(features, targets, CLASSES, weights), [strength])
    np.testing.assert_allclose(found, oracle.coef_, atol=1e-9)
    np.testing.assert_allclose(bias, oracle.intercept_, atol=1e-9)


def test_several_strengths_are_several_problems() -> None:
    """A strength's solution does not depend on those that are asked for with it."""
    features, targets, weights = problem(1)
    sums = gram(features, targets, CLASSES, weights)
    together = solve(sums, [0.1, 10.0, 1.0])
    for strength, (found, bias) in zip([0.1, 10.0, 1.0], together, strict=True):
        ((want, want_bias),) = solve(sums, [strength])
        np.testing.assert_array_equal(found, want)
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


def close(found: Gram, want: Gram) -> bool:
    """Return whether two are equal but for 1e-10 of their size."""
    return all(
        np.abs(getattr(found, name) - getattr(want, name)).max()
        <= 1e-10 * (1 + np.abs(getattr(want, name)).max())
        for name in ("products", "aims", "rows", "classes")
    )


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=40))
def test_rows_come_and_go_without_a_trace(seed: int, moves: list[int]) -> None:
    """After any history of rows that were added and removed, the sums are those of what is left."""
    features, targets, weights = problem(seed)
    there = np.arange(ROWS) < ROWS // 2
    sums = gram(features[there], targets[there], CLASSES, weights[there])
    for row in moves:
        one = slice(row, row + 1)
        part = gram(features[one], targets[one], CLASSES, weights[one])
        sums = sums - part if there[row] else sums + part
        there[row] = not there[row]
    want = gram(features[there], targets[there], CLASSES, weights[there])
    assert close(sums, want)
    ((found, _),), ((learnt, _),) = solve(sums, [1.0]), solve(want, [1.0])
    np.testing.assert_allclose(found, learnt, atol=1e-10 * (1 + np.abs(learnt).max()))


def test_no_rows_teach_nothing() -> None:
    """Where all rows were removed, weights and bias are 0."""
    features, targets, weights = problem(3)
    sums = gram(features, targets, CLASSES, weights)
    ((found, bias),) = solve(sums - sums, [1.0])
    assert not found.any()
    assert not bias.any()


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_some_rows_in_blocks_are_those_rows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may stand in any order, and blocks hold any number of them."""
    monkeypatch.setattr(module, "_ROWS", block)
    features, targets, weights = problem(4)
    rows = np.random.default_rng(0).permutation(ROWS)[:50]
    found = gram(features, targets, CLASSES, weights, rows=rows)
    assert close(found, gram(features[rows], targets[rows], CLASSES, weights[rows]))


def test_single_precision_keeps_what_is_centred() -> None:
    """Of centred features it is right to 1e-6 of the largest sum, far from 0 though they were."""
    features, targets, weights = problem(5)
    features += 1000
    centre = features.mean(axis=0, dtype=np.float64)
    rough = gram(features, targets, CLASSES, weights, centre=centre, dtype=np.float32)
    exact = gram(features - centre, targets, CLASSES, weights)
    assert rough.products.dtype == np.float32
    assert np.abs(rough.products - exact.products).max() < 1e-6 * np.abs(exact.products).max() * 10
