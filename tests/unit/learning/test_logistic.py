"""Batched logistic regression: agreement with scikit-learn, optimality and determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from topwork.arrays import FloatArray
from topwork.learning import logistic
from topwork.learning.logistic import Solution, solve

ROWS, WIDTH, CLASSES = 120, 20, 4


def make_problem(
    seed: int, rows: int = ROWS, width: int = WIDTH, classes: int = CLASSES, noise: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features (N, D) like embeddings, non-negative and of length 1, and classes (N,)."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, rows)
    centres = random.random((classes, width))
    raw = np.abs(centres[targets] + noise * random.normal(size=(rows, width))) + 1e-3
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32), targets


def make_weights(seed: int, problems: int, rows: int = ROWS) -> NDArray[np.float64]:
    """Return weights (B, N) of which about a fifth are 0, as in folds."""
    random = np.random.default_rng(seed)
    return random.random((problems, rows)) * (random.random((problems, rows)) > 0.2)


def probabilities(solution: Solution, problem: int, features: FloatArray) -> FloatArray:
    """Return (N, C) by the definition of softmax."""
    odds = np.exp(features @ solution.weights[problem].T + solution.bias[problem])
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def gradient(
    solution: Solution,
    features: FloatArray,
    targets: NDArray[np.int64],
    weights: FloatArray,
    strength: float,
) -> FloatArray:
    """Return the gradient (C, D + 1) of problem 0 by the definition of its objective."""
    error = probabilities(solution, 0, features.astype(np.float64))
    error[np.arange(len(targets)), targets] -= 1
    loss = (weights[:, None] * error).T @ np.column_stack([features, np.ones(len(features))])
    loss *= strength
    loss[:, :-1] += solution.weights[0]
    return np.asarray(loss)


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(strength: float, weighted: bool) -> None:
    """At convergence the probabilities match, with and without sample weights."""
    features, targets = make_problem(seed=1)
    weights = make_weights(2, 1) if weighted else np.ones((1, ROWS))
    oracle = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    oracle.fit(features.astype(np.float64), targets, sample_weight=weights[0])
    solution = solve(
        features, targets, CLASSES, sample_weights=weights, strengths=np.array([strength])
    )
    np.testing.assert_allclose(
        probabilities(solution, 0, features), oracle.predict_proba(features), atol=1e-5
    )


def test_grid_equals_its_problems() -> None:
    """A solution is the same in a batch, in a batch solved in parts, and alone."""
    features, targets = make_problem(seed=3)
    weights, strengths = make_weights(4, 6), np.array([0.1, 1.0, 10.0, 100.0, 1000.0, 3.0])
    batch = solve(features, targets, CLASSES, sample_weights=weights, strengths=strengths)
    assert (
        len(set(batch.iterations)) > 1
    )  # some problems finish early and must not change after that
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logistic, "_BATCH_NUMBERS", 4 * CLASSES * (5 * ROWS + 20 * (WIDTH + 1)))
        parts = solve(features, targets, CLASSES, sample_weights=weights, strengths=strengths)
    for problem in range(len(strengths)):
        single = slice(problem, problem + 1)
        alone = solve(
            features, targets, CLASSES, sample_weights=weights[single], strengths=strengths[single]
        )
        expected = probabilities(alone, 0, features)
        np.testing.assert_allclose(probabilities(batch, problem, features), expected, atol=1e-6)
        np.testing.assert_allclose(probabilities(parts, problem, features), expected, atol=1e-6)
        assert abs(batch.iterations[problem] - alone.iterations[0]) <= 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_of_rows_do_not_change_the_solution(
    dtype: type[np.float32 | np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of 32 and 64 rows, the last filled up, give the solution of one product."""
    monkeypatch.setattr(logistic, "_BLOCK_ROWS", 64)  # also parts are summed in several blocks
    features, targets = make_problem(seed=16)
    numbers = 3 * CLASSES * (WIDTH + 1)  # of 3 problems
    found = []
    for fitting, rows in ((8, ROWS), (128, ROWS), (64, 64), (32, 32)):
        monkeypatch.setattr(logistic, "_UNPACKED", numbers * fitting)
        assert logistic._rows_per_part(ROWS, numbers) == rows
        found.append(
            solve(
                features,
                targets,
                CLASSES,
                sample_weights=make_weights(17, 3),
                strengths=np.array([3.0, 30.0, 300.0]),
                tolerance=1e-5,
                dtype=dtype,
            )
        )
    for parts in found[1:]:
        assert (abs(parts.iterations - found[0].iterations) <= 3).all()
        for problem in range(3):
            np.testing.assert_allclose(
                probabilities(parts, problem, features),
                probabilities(found[0], problem, features),
                atol=1e-4,
            )


@pytest.mark.slow
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 40),
    width=st.integers(1, 30),
    classes=st.integers(2, 6),
    exponent=st.floats(-3, 3),
    shift=st.floats(-10, 10),
)
def test_gradient_vanishes(
    seed: int, rows: int, width: int, classes: int, exponent: float, shift: float
) -> None:
    """The objective's gradient at the solution is 0 within the tolerance."""
    features, targets = make_problem(seed, rows, width, classes)
    features += np.float32(shift)
    weights, strength = make_weights(seed, 1, rows) + 0.01, 10**exponent
    solution = solve(
        features, targets, classes, sample_weights=weights, strengths=np.array([strength])
    )
    trained = np.unique(targets)
    end = gradient(solution, features, targets, weights[0], strength)[trained]
    size = (strength * weights.sum() + 1) * (1 + np.abs(features).max())  # magnitude of its terms
    assert np.abs(end).max() < 1e-6 * size
    assert solution.decrement[0] <= 1e-7


@pytest.mark.parametrize("seed", [51, 64, 70])
def test_overshooting_steps_are_shortened(seed: int) -> None:
    """With few long rows and little regularisation full steps overshoot; the solver converges."""
    random = np.random.default_rng(seed)
    solution = solve(
        random.normal(size=(9, 3)) * 15,
        random.integers(0, 4, 9),
        4,
        sample_weights=np.ones((1, 9)),
        strengths=np.array([1000.0]),
        tolerance=1e-5,
    )
    assert solution.decrement[0] <= 1e-5


def test_few_iterations() -> None:
    """Centring and a short bias column save two thirds of the iterations."""
    features, targets = make_problem(seed=1, rows=400, width=200)
    solution = solve(
        features,
        targets,
        CLASSES,
        sample_weights=np.ones((3, 400)),
        strengths=np.array([3.0, 30.0, 300.0]),
    )
    assert (solution.iterations <= [20, 40, 60]).all()  # 14, 34, 50 when this was written


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bytes_twice(dtype: type[np.float32 | np.float64]) -> None:
    """The same input gives the same bytes, of the requested dtype."""
    features, targets = make_problem(seed=5)
    first, second = (
        solve(
            features,
            targets,
            CLASSES,
            sample_weights=make_weights(6, 3),
            strengths=np.array([1.0, 10.0, 100.0]),
            tolerance=1e-5,
            dtype=dtype,
        )
        for _ in range(2)
    )
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()
    assert first.weights.dtype == first.bias.dtype == dtype


def test_float32_is_close_to_float64() -> None:
    """In float32 a tolerance of 1e-5 gives float64's probabilities to 1e-4."""
    features, targets = make_problem(seed=7)
    weights, strengths = make_weights(8, 3), np.array([1.0, 30.0, 300.0])
    exact = solve(features, targets, CLASSES, sample_weights=weights, strengths=strengths)
    rough = solve(
        features,
        targets,
        CLASSES,
        sample_weights=weights,
        strengths=strengths,
        tolerance=1e-5,
        dtype=np.float32,
    )
    for problem in range(len(strengths)):
        np.testing.assert_allclose(
            probabilities(rough, problem, features),
            probabilities(exact, problem, features),
            atol=1e-4,
        )


def test_class_order_does_not_matter() -> None:
    """Renumbered classes permute the solution."""
    features, targets = make_problem(seed=9)
    weights, strengths = make_weights(10, 1), np.array([10.0])
    order = np.array([2, 0, 3, 1])
    solution = solve(features, targets, CLASSES, sample_weights=weights, strengths=strengths)
    permuted = solve(features, order[targets], CLASSES, sample_weights=weights, strengths=strengths)
    np.testing.assert_allclose(permuted.weights[:, order], solution.weights, atol=1e-5)
    np.testing.assert_allclose(permuted.bias[:, order], solution.bias, atol=1e-5)


def test_absent_class() -> None:
    """A class without weight gets probability 0 and does not affect the other classes."""
    features, targets = make_problem(seed=11)
    weights = np.stack([(targets != 1) * 1.0, np.ones(ROWS)])
    solution = solve(
        features, targets, CLASSES, sample_weights=weights, strengths=np.array([10.0, 10.0])
    )
    present = targets != 1
    renumbered = np.searchsorted([0, 2, 3], targets[present])
    without = solve(
        features[present],
        renumbered,
        CLASSES - 1,
        sample_weights=np.ones((1, present.sum())),
        strengths=np.array([10.0]),
    )
    given_all = probabilities(solution, 0, features)
    assert given_all[:, 1].max() < 1e-9
    assert np.abs(solution.weights[0, 1]).max() < 1e-9
    np.testing.assert_allclose(
        given_all[:, [0, 2, 3]], probabilities(without, 0, features), atol=1e-6
    )
    assert probabilities(solution, 1, features)[:, 1].max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-12])
def test_separable_data_stays_finite(
    dtype: type[np.float32 | np.float64], tolerance: float
) -> None:
    """The solver ends with finite weights at huge strengths and unreachable tolerances."""
    features, targets = make_problem(seed=12, noise=0.02)
    solution = solve(
        features,
        targets,
        CLASSES,
        sample_weights=np.ones((3, ROWS)),
        strengths=np.array([1e4, 1e8, 1e12]),
        tolerance=tolerance,
        dtype=dtype,
    )
    assert np.isfinite(solution.weights).all()
    assert np.isfinite(solution.bias).all()
    for weights, bias in zip(solution.weights, solution.bias, strict=True):
        assert ((features @ weights.T + bias).argmax(axis=1) == targets).all()


def test_equal_rows_have_the_class_shares() -> None:
    """For equal features the probabilities are the shares of the classes."""
    solution = solve(
        np.ones((4, 3)),
        np.array([0, 0, 0, 1]),
        2,
        sample_weights=np.ones((1, 4)),
        strengths=np.array([1.0]),
    )
    np.testing.assert_allclose(probabilities(solution, 0, np.ones((1, 3))), [[0.75, 0.25]])


@pytest.mark.parametrize("name", ["features", "sample_weights", "strengths"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_input_is_named(name: str, value: float) -> None:
    """The ValueError names the input that is not finite."""
    features, targets = make_problem(seed=13)
    inputs: dict[str, FloatArray] = {
        "features": features,
        "sample_weights": np.ones((2, ROWS)),
        "strengths": np.ones(2),
    }
    inputs[name].flat[-1] = value
    with pytest.raises(ValueError, match=f"^{name} has a value that is not finite"):
        solve(
            inputs["features"],
            targets,
            CLASSES,
            sample_weights=inputs["sample_weights"],
            strengths=inputs["strengths"],
        )


def test_problem_without_weight_has_equal_probabilities() -> None:
    """A problem without weight has equal probabilities and does not affect other problems."""
    features, targets = make_problem(seed=14)
    weights = np.ones((3, ROWS))
    weights[1] = 0
    found = solve(features, targets, CLASSES, sample_weights=weights, strengths=np.ones(3))
    assert not found.weights[1].any()
    assert np.ptp(found.bias[1]) < 1e-12
    np.testing.assert_allclose(found.weights[0], found.weights[2], atol=1e-9)
    assert found.weights[0].any()


@pytest.mark.parametrize("classes", [1, 2, 5, 8, 9])
def test_contrasts_are_orthonormal(classes: int) -> None:
    """Contrasts preserve lengths; for few classes they omit the common shift."""
    found = logistic._contrasts(classes)  # visible from outside only by the speed
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-15)
    if found.shape[1] < classes:
        np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-14)


def test_contrasts_do_not_change_the_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without contrasts the optimum and the number of steps are the same."""
    features, targets = make_problem(seed=15)
    weights, strengths = np.ones((1, ROWS)), np.array([10.0])
    found = solve(features, targets, CLASSES, sample_weights=weights, strengths=strengths)
    monkeypatch.setattr(logistic, "_MAX_CONTRASTS", 0)
    expected = solve(features, targets, CLASSES, sample_weights=weights, strengths=strengths)
    assert abs(int(found.iterations[0]) - int(expected.iterations[0])) <= 2
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)
    np.testing.assert_allclose(found.bias, expected.bias, atol=1e-5)
