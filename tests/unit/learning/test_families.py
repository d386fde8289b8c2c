"""Each kind of head is what its name says, from any set of rows."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import rbf_kernel

from topwork.bundle.recipe import HeadKind
from topwork.errors import NotReady
from topwork.learning import families as module
from topwork.learning.families import FAMILIES
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
    """Return sets of all rows but every third."""
    return np.asarray(np.arange(len(task.targets)) % count != np.arange(count)[:, None])


def everything(task: Task) -> Bools:
    """Return the one set of all rows."""
    return np.ones((1, len(task.targets)), dtype=bool)


def only(task: Task, rows: Bools) -> Task:
    """Return the task of some rows only."""
    return Task(features=task.features[rows], targets=task.targets[rows], classes=task.classes)


# Against others' implementations


@pytest.mark.parametrize(("rows", "width"), [(120, 30), (40, 90)])
def test_ridge_is_scikit_learns(rows: int, width: int) -> None:
    """With more rows than columns and with fewer, balanced as in all rows together."""
    task = make_task(rows, width)
    balance = balanced_weights(task.targets, CLASSES)
    sets = folds(task)
    (scorers,) = FAMILIES["ridge"].solve(task, sets, [3.0], final=True)
    for one, scorer in zip(sets, scorers, strict=True):
        oracle = Ridge(alpha=1 / 3).fit(
            task.features[one].astype(float),
            np.eye(CLASSES)[task.targets[one]],
            sample_weight=balance[one],
        )
        want = oracle.predict(task.features.astype(float))
        np.testing.assert_allclose(scorer(task.features), want, atol=1e-5)


def test_logistic_is_scikit_learns() -> None:
    """A set's head is scikit-learn's, fitted on its rows alone with balanced classes."""
    task = make_task()
    sets = folds(task)
    (scorers,) = FAMILIES["logistic"].solve(task, sets, [10.0], final=True)
    for one, scorer in zip(sets, scorers, strict=True):
        oracle = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-10, max_iter=10_000)
        oracle.fit(task.features[one].astype(float), task.targets[one])
        want = oracle.decision_function(task.features)
        found = scorer(task.features)
        found -= found.mean(axis=1, keepdims=True)  # of several scores, only differences count
        np.testing.assert_allclose(found, want - want.mean(axis=1, keepdims=True), atol=1e-3)


def test_kernel_is_scikit_learns() -> None:
    """A set's head is scikit-learn's on the same kernel, the noise being its classes' balance."""
    task = make_task()
    sets = folds(task)
    (scorers,) = FAMILIES["kernel"].solve(task, sets, [5.0], final=True)
    kernel = scorers[0].expansion
    assert kernel is not None
    points = task.support.points
    for one, scorer in zip(sets, scorers, strict=True):
        targets = task.targets[one]
        noise = 1 / balanced_weights(targets, CLASSES) / 5.0
        aims = np.eye(CLASSES)[targets] - 1 / CLASSES
        similar = rbf_kernel(points[one].astype(float), gamma=GAMMA)
        oracle = KernelRidge(kernel="precomputed", alpha=0.0)
        oracle.fit(similar + np.diag(noise), aims)
        want = oracle.predict(kernel(task.features)[:, one]) + 1 / CLASSES
        np.testing.assert_allclose(scorer(task.features), want, atol=1e-4)


def test_waves_come_near_the_kernel() -> None:
    """Products of 2,048 random waves are the RBF kernel to a few hundredths."""
    task = make_task()
    ((scorer,),) = FAMILIES["fourier"].solve(task, everything(task), [1.0], final=False)
    assert scorer.expansion is not None
    waves = scorer.expansion(task.features)
    error = waves @ waves.T - rbf_kernel(task.features, gamma=GAMMA)
    assert np.sqrt(np.square(error).mean()) < 0.03
    assert np.abs(error).max() < 0.12


def test_nearest_mean_is_the_nearest_mean() -> None:
    """The highest score is of the class whose mean is nearest, by brute force."""
    task = make_task()
    ((scorer,),) = FAMILIES["nearest_mean"].solve(task, everything(task), [1.0], final=True)
    means = [task.features[task.targets == target].mean(axis=0) for target in range(CLASSES)]
    new = make_task(300, seed=1).features
    want = cdist(new, means).argmin(axis=1)
    assert (scorer(new).argmax(axis=1) == want).all()


# Any set of rows


@pytest.mark.parametrize("kind", ["logistic", "kernel", "nearest_mean"])
def test_a_set_is_learnt_as_if_there_were_no_other_rows(kind: HeadKind) -> None:
    """A head of a set is that of a task with its rows alone."""
    task = make_task()
    sets = folds(task)
    strength = FAMILIES[kind].strengths[-1]
    (scorers,) = FAMILIES[kind].solve(task, sets, [strength], final=True)
    for one, scorer in zip(sets, scorers, strict=True):
        alone = only(task, one)
        ((want,),) = FAMILIES[kind].solve(alone, everything(alone), [strength], final=True)
        # The kernel's points are rounded to 16 bits in other directions.
        np.testing.assert_allclose(scorer(task.features), want(task.features), atol=3e-3)


@pytest.mark.parametrize("kind", ["ridge", "fourier"])
def test_a_set_of_equal_shares_is_learnt_so_too(kind: HeadKind) -> None:
    """Ridge has the balance of all rows: its set is that of a task where that is the same."""
    whole = make_task(60)
    task = Task(
        features=np.concatenate([whole.features, make_task(60, seed=1).features]),
        targets=np.tile(whole.targets, 2),
        classes=CLASSES,
    )
    half = np.arange(120) < 60
    ((found,),) = FAMILIES[kind].solve(task, half[None], [2.0], final=True)
    ((want,),) = FAMILIES[kind].solve(whole, everything(whole), [2.0], final=True)
    np.testing.assert_allclose(found(task.features), want(task.features), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_is_absent_never_wins(kind: HeadKind) -> None:
    """Of a set without a class, it has the highest score nowhere, near or far."""
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
def test_a_set_without_rows_is_no_trouble(kind: HeadKind) -> None:
    """It teaches nothing, its scores are finite, and the set beside it does not care."""
    task = make_task()
    sets = np.stack([np.zeros(120, dtype=bool), np.ones(120, dtype=bool)])
    ((nothing, beside),) = FAMILIES[kind].solve(task, sets, [3.0], final=False)
    ((alone,),) = FAMILIES[kind].solve(task, everything(task), [3.0], final=False)
    assert np.ptp(nothing(task.features)) < 1e-6
    np.testing.assert_allclose(beside(task.features), alone(task.features), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_are_in_the_order_asked_for(kind: HeadKind) -> None:
    """A strength's heads are those that it has alone."""
    task = make_task()
    sets = folds(task)
    strengths = [100.0, 0.1]
    together = FAMILIES[kind].solve(task, sets, strengths, final=True)
    for strength, scorers in zip(strengths, together, strict=True):
        (alone,) = FAMILIES[kind].solve(task, sets, [strength], final=True)
        for found, want in zip(scorers, alone, strict=True):
            np.testing.assert_allclose(found(task.features), want(task.features), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_is_near_to_the_final_head(kind: HeadKind) -> None:
    """What cross-validation compares is what is learnt in the end, to a few hundredths."""
    task = make_task()
    strength = FAMILIES[kind].strengths[0]
    ((draft,),) = FAMILIES[kind].solve(task, everything(task), [strength], final=False)
    ((final,),) = FAMILIES[kind].solve(task, everything(task), [strength], final=True)
    np.testing.assert_allclose(draft(task.features), final(task.features), atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_give_the_same_bytes(kind: HeadKind) -> None:
    """A solve has no memory and no chance in it."""
    first, second = (
        FAMILIES[kind].solve(task, everything(task), [3.0], final=True)[0][0]
        for task in (make_task(), make_task())
    )
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


def test_a_kernel_of_too_many_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how many there are, how many may be, and what to do."""
    monkeypatch.setattr(module, "SUPPORT_ROWS", 100)
    task = make_task()
    with pytest.raises(NotReady, match=r"up to 100 images and there are 120; fit with another"):
        FAMILIES["kernel"].solve(task, everything(task), [3.0], final=False)
