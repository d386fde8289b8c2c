"""Features: normalisations, at any scale of the embeddings."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from topwork.bundle.features import make
from topwork.bundle.recipe import Normalisation

KINDS: tuple[Normalisation, ...] = get_args(Normalisation)
WIDTH = 64


def embeddings(rows: int = 50, *, seed: int = 1) -> NDArray[np.float32]:
    """Return random embeddings of both signs, with some columns of zeros."""
    found = np.random.default_rng(seed).normal(0.3, 1, (rows, WIDTH))
    found[:, ::7] = 0
    return found.astype(np.float32)


@settings(max_examples=100)
@given(
    st.sampled_from(["l2", "sqrt_l2"]),
    st.integers(0, 2**32 - 1),
    st.floats(1e-10, 1e10),
    st.integers(1, 20),
)
def test_l2_features_have_unit_length(
    kind: Normalisation, seed: int, scale: float, rows: int
) -> None:
    """Rows have length 1 at any scale, keep their signs, and do not depend on the scale."""
    plain = embeddings(rows, seed=seed)
    normaliser = make(kind, plain)
    features = normaliser(plain * np.float32(scale))
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert (np.sign(features) == np.sign(plain)).all()
    np.testing.assert_allclose(features, normaliser(plain), atol=1e-5)


def test_sqrt_l2_takes_signed_square_roots() -> None:
    """Entries are replaced by their signed square roots before the division by the length."""
    row = np.array([[16.0, -9.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(make("sqrt_l2", row)(row), [[4 / 5, -3 / 5, 0.0]], rtol=1e-6)


def test_l2_keeps_the_direction() -> None:
    """A row is divided by its own length."""
    row = np.array([[3.0, -4.0]], dtype=np.float32)
    np.testing.assert_allclose(make("l2", row)(row), [[3 / 5, -4 / 5]], rtol=1e-6)


def test_standardise_equals_scikit_learn() -> None:
    """Columns equal StandardScaler's, divided by the root of the width, after one more row.

    That row has the mean deviation of all columns; constant columns stay 0.
    """
    rows = embeddings().astype(float)
    scaler = StandardScaler().fit(rows)
    shrunk = np.sqrt((len(rows) * scaler.var_ + scaler.var_.mean()) / (len(rows) + 1))
    want = (rows - scaler.mean_) / shrunk / np.sqrt(WIDTH)
    found = make("standardise", rows.astype(np.float32))(rows.astype(np.float32))
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_standardise_does_not_amplify_columns_that_are_constant_by_chance() -> None:
    """If a third of the columns of few images are 0, other images are not of another size."""
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.normal(-1, 1, (400, WIDTH)), 0).astype(np.float32)
    normaliser = make("standardise", rows[:10])
    assert (rows[:10].std(axis=0) == 0).any()
    lengths = np.linalg.norm(normaliser(rows), axis=1)
    assert np.median(lengths[10:]) < 4 * np.median(lengths[:10])


def test_standardise_does_not_amplify_nearly_constant_columns() -> None:
    """Noise of a millionth of the other columns' deviation stays small."""
    rows = embeddings()
    rows[:, 0] = 1 + 1e-6 * rows[:, 1]
    assert np.abs(make("standardise", rows)(rows)[:, 0]).max() < 0.01


def test_none_only_scales_the_embeddings() -> None:
    """With ``none`` the features are the embeddings times one factor."""
    rows = embeddings()
    features = make("none", rows)(rows)
    factor = features[0, 1] / rows[0, 1]
    np.testing.assert_allclose(features, rows * factor, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e10])
def test_the_mean_squared_length_is_one(kind: Normalisation, scale: float) -> None:
    """So a regularisation strength or kernel width means the same for all normalisations."""
    rows = embeddings() * np.float32(scale)
    found = np.square(make(kind, rows)(rows)).sum(axis=1).mean()
    assert found == pytest.approx(1, abs=0.2)  # 10 of 64 columns are 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e10])
def test_equal_embeddings_give_finite_features(kind: Normalisation, value: float) -> None:
    """If all embeddings are equal or 0, their features have at most length 1; others are finite."""
    rows = np.full((7, WIDTH), value, dtype=np.float32)
    normaliser = make(kind, rows)
    assert np.linalg.norm(normaliser(rows), axis=1).max() < 1.01
    assert np.isfinite(np.square(normaliser(2 * rows))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_row_do_not_depend_on_its_batch(kind: Normalisation) -> None:
    """A row has the same features alone and in a batch; an empty batch is valid."""
    rows = embeddings(9)
    normaliser = make(kind, rows)
    alone = np.concatenate([normaliser(rows[index : index + 1]) for index in range(9)])
    np.testing.assert_allclose(normaliser(rows), alone, rtol=1e-6)
    assert normaliser(rows[:0]).shape == (0, WIDTH)
