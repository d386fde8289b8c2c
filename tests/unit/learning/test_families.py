"""Families of heads: agreement with scikit-learn, any set of rows, determinism."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import rbf_kernel

from topwork.bundle.head import Kernel
from topwork.bundle.recipe import HeadKind
from topwork.learning import task as task_module
from topwork.learning.families import FAMILIES
from topwork.learning.parallel import Threads
from topwork.learning.task import GAMMA, Task, balanced_weights

KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
CLASSES = 4
Bools = NDArray[np.bool_]


def make_task(rows: int = 120, width: int = 30, *, seed: int = 0) -> Task:
    """Return features of length 1 of four classes, the last of them small."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(CLASSES, rows, p=[0.4, 0.3, 0.2, 0.1])
    targets[:CLASSES] = range(CLASSES)
    features = rng.normal(size=(rows, width)) + 2 * rng.normal(size=(CLASSES, width))[targets]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Task(features=features.astype(np.float32), targets=targets, classes=CLASSES)


def folds(task: Task, count: int = 3) -> Bools:
    """Return one set per fold, with the rows of the other folds."""
    return np.asarray(np.arange(len(task.targets)) % count != np.arange(count)[:, None])


def all_rows(task: Task) -> Bools:
    """Return a single set of all rows."""
    return np.ones((1, len(task.targets)), dtype=bool)


def only(task: Task, rows: Bools) -> Task:
    """Return the task of ``rows`` only."""
    return Task(features=task.features[rows], targets=task.targets[rows], classes=task.classes)


# Reference implementations


@pytest.mark.parametrize(("rows", "width"), [(120, 30), (40, 90)])
def test_ridge_matches_scikit_learn(rows: int, width: int) -> None:
    """Ridge matches with more rows than columns and with fewer, with weights of all rows."""
    task = make_task(rows, width)
    balance = balanced_weights(task.targets, CLASSES)
    sets = folds(task)
    (scorers,) = FAMILIES["ridge"].solve(task, sets, [3.0], final=True)
    for members, scorer in zip(sets, scorers, strict=True):
        oracle = Ridge(alpha=1 / 3).fit(
            task.features[members].astype(float),
            np.eye(CLASSES)[task.targets[members]],
            sample_weight=balance[members],
        )
        expected = oracle.predict(task.features.astype(float))
        np.testing.assert_allclose(scorer(task.features), expected, atol=1e-5)


def test_logistic_matches_scikit_learn() -> None:
    """A set's head matches scikit-learn's, fitted on its rows with balanced classes."""
    task = make_task()
    sets = folds(task)
    (scorers,) = FAMILIES["logistic"].solve(task, sets, [10.0], final=True)
    for members, scorer in zip(sets, scorers, strict=True):
        oracle = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-10, max_iter=10_000)
        oracle.fit(task.features[members].astype(float), task.targets[members])
        expected = oracle.decision_function(task.features)
        found = scorer(task.features)
        found -= found.mean(axis=1, keepdims=True)  # only differences of scores matter
        np.testing.assert_allclose(
            found, expected - expected.mean(axis=1, keepdims=True), atol=1e-3
        )


def test_kernel_matches_scikit_learn() -> None:
    """A set's head matches scikit-learn's on the same kernel, with balanced noise."""
    task = make_task()
    sets = folds(task)
    (scorers,) = FAMILIES["kernel"].solve(task, sets, [5.0], final=True)
    kernel = scorers[0].expansion
    assert kernel is not None
    points = task.support.points
    for members, scorer in zip(sets, scorers, strict=True):
        targets = task.targets[members]
        noise = 1 / balanced_weights(targets, CLASSES) / 5.0
        right_sides = np.eye(CLASSES)[targets] - 1 / CLASSES
        similarities = rbf_kernel(points[members].astype(float), gamma=GAMMA)
        oracle = KernelRidge(kernel="precomputed", alpha=0.0)
        oracle.fit(similarities + np.diag(noise), right_sides)
        expected = oracle.predict(kernel(task.features)[:, members]) + 1 / CLASSES
        np.testing.assert_allclose(scorer(task.features), expected, atol=1e-4)


def test_random_fourier_features_approximate_the_kernel() -> None:
    """Products of 2,048 random Fourier features are near the RBF kernel."""
    task = make_task()
    ((scorer,),) = FAMILIES["fourier"].solve(task, all_rows(task), [1.0], final=False)
    assert scorer.expansion is not None
    random_features = scorer.expansion(task.features)
    error = random_features @ random_features.T - rbf_kernel(task.features, gamma=GAMMA)
    assert np.sqrt(np.square(error).mean()) < 0.03
    assert np.abs(error).max() < 0.12


def test_nearest_mean_matches_brute_force() -> None:
    """The highest score is of the class with the nearest mean."""
    task = make_task()
    ((scorer,),) = FAMILIES["nearest_mean"].solve(task, all_rows(task), [1.0], final=True)
    means = [task.features[task.targets == target].mean(axis=0) for target in range(CLASSES)]
    new = make_task(300, seed=1).features
    expected = cdist(new, means).argmin(axis=1)
    assert (scorer(new).argmax(axis=1) == expected).all()


# Any set of rows


@pytest.mark.parametrize("kind", ["logistic", "kernel", "nearest_mean"])
def test_head_of_a_set_ignores_other_rows(kind: HeadKind) -> None:
    """A head of a set equals that of a task with its rows only."""
    task = make_task()
    sets = folds(task)
    strength = FAMILIES[kind].strengths[-1]
    (scorers,) = FAMILIES[kind].solve(task, sets, [strength], final=True)
    for members, scorer in zip(sets, scorers, strict=True):
        alone = only(task, members)
        ((expected,),) = FAMILIES[kind].solve(alone, all_rows(alone), [strength], final=True)
        # The kernel's points are rounded to 16 bits in other directions.
        np.testing.assert_allclose(scorer(task.features), expected(task.features), atol=3e-3)


@pytest.mark.parametrize("kind", ["ridge", "fourier"])
def test_ridge_of_a_set_with_equal_shares_ignores_other_rows(kind: HeadKind) -> None:
    """Ridge uses the class balance of all rows; with equal balance, a set ignores other rows."""
    whole = make_task(60)
    task = Task(
        features=np.concatenate([whole.features, make_task(60, seed=1).features]),
        targets=np.tile(whole.targets, 2),
        classes=CLASSES,
    )
    half = np.arange(120) < 60
    ((found,),) = FAMILIES[kind].solve(task, half[None], [2.0], final=True)
    ((expected,),) = FAMILIES[kind].solve(whole, all_rows(whole), [2.0], final=True)
    np.testing.assert_allclose(found(task.features), expected(task.features), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_absent_class_never_has_the_highest_score(kind: HeadKind) -> None:
    """A class without rows in the set never has the highest score, near or far."""
    task = make_task()
    sets = task.targets[None] != np.arange(CLASSES)[:, None]
    rng = np.random.default_rng(0)
    new = np.concatenate([task.features, rng.normal(size=(200, 30)), 100 * task.features])
    for scorers in FAMILIES[kind].solve(task, sets, FAMILIES[kind].strengths, final=False):
        for absent, scorer in enumerate(scorers):
            scores = scorer(new.astype(np.float32))
            assert np.isfinite(scores).all()
            assert (np.delete(scores, absent, axis=1).max(axis=1) > scores[:, absent]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_empty_set_gives_equal_scores(kind: HeadKind) -> None:
    """An empty set gives equal finite scores and does not affect other sets."""
    task = make_task()
    sets = np.stack([np.zeros(120, dtype=bool), np.ones(120, dtype=bool)])
    ((nothing, other),) = FAMILIES[kind].solve(task, sets, [3.0], final=False)
    ((alone,),) = FAMILIES[kind].solve(task, all_rows(task), [3.0], final=False)
    assert np.ptp(nothing(task.features)) < 1e-6
    np.testing.assert_allclose(other(task.features), alone(task.features), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_are_independent(kind: HeadKind) -> None:
    """Heads of a strength equal those of a separate solve, in the given order."""
    task = make_task()
    sets = folds(task)
    strengths = [100.0, 0.1]
    together = FAMILIES[kind].solve(task, sets, strengths, final=True)
    for strength, scorers in zip(strengths, together, strict=True):
        (alone,) = FAMILIES[kind].solve(task, sets, [strength], final=True)
        for found, expected in zip(scorers, alone, strict=True):
            np.testing.assert_allclose(found(task.features), expected(task.features), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_draft_is_near_the_final_head(kind: HeadKind) -> None:
    """The less precise head of cross-validation is within 0.02 of the final head."""
    task = make_task()
    strength = FAMILIES[kind].strengths[0]
    ((draft,),) = FAMILIES[kind].solve(task, all_rows(task), [strength], final=False)
    ((final,),) = FAMILIES[kind].solve(task, all_rows(task), [strength], final=True)
    np.testing.assert_allclose(draft(task.features), final(task.features), atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_solve_is_deterministic(kind: HeadKind) -> None:
    """The same rows give the same bytes."""
    first, second = (
        FAMILIES[kind].solve(task, all_rows(task), [3.0], final=True)[0][0]
        for task in (make_task(), make_task())
    )
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every task a large one."""
    monkeypatch.setattr(task_module, "EXACT_KERNEL_ROWS", 0)


def test_kernel_of_all_rows_as_landmarks_is_the_exact_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ridge regression on whitened similarities to all rows is kernel ridge regression."""
    sets = folds(make_task())
    (exact,) = FAMILIES["kernel"].solve(make_task(), sets, [3.0], final=True)
    monkeypatch.setattr(task_module, "EXACT_KERNEL_ROWS", 0)
    task = make_task()
    (found,) = FAMILIES["kernel"].solve(task, sets, [3.0], final=True)
    x = task.features
    for one, other in zip(exact, found, strict=True):
        # The exact one has no intercept, and the balance of each set.
        np.testing.assert_allclose(one(x), other(x), atol=0.05)
        assert (one(x).argmax(axis=1) == other(x).argmax(axis=1)).mean() > 0.9


@pytest.mark.usefixtures("large")
def test_kernel_of_some_landmarks_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the task's rows and of new rows are those of the scorer, with few points."""
    monkeypatch.setattr(task_module, "LANDMARKS", 40)
    task = make_task()
    ((scorer,),) = FAMILIES["kernel"].solve(task, all_rows(task), [3.0], final=True)
    assert isinstance(scorer.expansion, Kernel)
    assert len(scorer.expansion.support.points) == 40
    rows = np.arange(len(task.targets))
    np.testing.assert_allclose(task.scores(scorer, rows), scorer(task.features), atol=1e-4)
    assert (scorer(task.features).argmax(axis=1) == task.targets).mean() > 0.8


@pytest.mark.usefixtures("large")
def test_absent_class_never_has_the_highest_score_of_landmarks() -> None:
    """As for the other heads."""
    test_absent_class_never_has_the_highest_score("kernel")


@pytest.mark.usefixtures("large")
def test_landmarks_do_not_depend_on_threads() -> None:
    """Two threads give the same bytes as one."""
    sets = folds(make_task())
    with Threads(2) as threads:
        (found,) = FAMILIES["kernel"].solve(make_task(), sets, [3.0], final=False, threads=threads)
    (expected,) = FAMILIES["kernel"].solve(make_task(), sets, [3.0], final=False)
    assert [one.weights.tobytes() for one in found] == [one.weights.tobytes() for one in expected]
