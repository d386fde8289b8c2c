"""Heads are judged on images that they did not see, and the simplest of equals is taken."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS, Exemplars, make
from topwork.bundle.features import make as make_normaliser
from topwork.bundle.recipe import HeadKind
from topwork.learning.families import FAMILIES
from topwork.learning.judging import Judge, Trial
from topwork.learning.sharing import ALONE
from topwork.learning.task import Task, take_turns

KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
WIDTH = 12


def exemplars(rows: int = 90, classes: int = 3, *, seed: int = 0) -> Exemplars:
    """Return exemplars of some classes, each half seen by the backbone where ``rows`` is even."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    embeddings = rng.normal(size=(rows, WIDTH)) + 2 * np.eye(classes, WIDTH)[targets]
    prints = rng.integers(0, 256, (2, rows, 32), dtype=np.uint8)
    return make(embeddings.astype(np.float32), prints[0], prints[1], [f"c{one}" for one in targets])


def judge(made: Exemplars, *, taught: int = 0) -> Judge:
    """Return a judge of five folds in turn, the first rows only teaching."""
    folds = np.arange(len(made)) % FOLDS
    folds[:taught] = -1
    return with_folds(made, folds)


def with_folds(made: Exemplars, folds: NDArray[np.int64]) -> Judge:
    """Return a judge of given folds."""
    return Judge(
        embeddings=made.embeddings,
        every_target=made.targets,
        classes=len(made.labels),
        folds=folds,
    )


def task_of(one: Judge) -> Task:
    """Return the task of l2 features."""
    return one.task(make_normaliser("l2", one.embeddings))


def trial(one: Judge, losses: NDArray[np.floating]) -> Trial:
    """Return a trial of given losses."""
    normaliser = make_normaliser("l2", one.embeddings)
    return Trial(
        kind="ridge",
        normaliser=normaliser,
        strength=1.0,
        scores=np.zeros((len(one.rows), 3), dtype=np.float32),
        temperature=1.0,
        losses=losses.astype(np.float32),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_heads_that_did_not_see(kind: HeadKind) -> None:
    """Each judged row's scores come from the head of all rows but its fold's, seen ones too."""
    one = judge(exemplars(), taught=20)
    task = task_of(one)
    normaliser = make_normaliser("l2", one.embeddings)
    (found,) = one.trials(task, normaliser, kind, [3.0])
    assert found.scores.shape == (70, 3)
    for fold in range(FOLDS):
        others = (one.folds != fold)[None]
        ((scorer,),) = FAMILIES[kind].solve(task, others, [3.0], final=True)
        mine = one.folds[one.rows] == fold
        want = scorer(task.features[one.rows[mine]])
        found_here = found.scores[mine] - found.scores[mine].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(found_here, want - want.mean(axis=1, keepdims=True), atol=0.02)


def test_probabilities_are_those_of_the_losses() -> None:
    """A trial's losses are the negative logarithms of its probabilities for the targets."""
    one = judge(exemplars())
    normaliser = make_normaliser("l2", one.embeddings)
    for found in one.trials(task_of(one), normaliser, "logistic", [1.0, 30.0]):
        p = found.probabilities()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
        chosen = p[np.arange(len(p)), one.targets]
        np.testing.assert_allclose(found.losses, -np.log(chosen), atol=1e-5)
        assert one.accuracy(found) == (p.argmax(axis=1) == one.targets).mean()


def test_a_class_in_one_fold_says_nothing_of_certainty() -> None:
    """A row whose class no other fold has counts 0, the others as their classes' balance says."""
    made = exemplars()
    folds = np.arange(90) % FOLDS
    folds[made.targets == 2] = 4
    one = with_folds(made, folds)
    assert (one.weights[one.targets == 2] == 0).all()
    assert (one.weights[one.targets != 2] > 0).all()
    folds[np.flatnonzero(made.targets == 2)[0]] = -1  # taught by an image that is never judged
    again = with_folds(made, folds)
    assert (again.weights > 0).all()


def test_a_shortened_judge_judges_the_first_folds() -> None:
    """As many as have enough rows; the rows of the others teach always."""
    one = judge(exemplars())
    short = one.shortened(30)
    assert short.folds.max() == 1
    assert (short.folds[one.folds < 2] == one.folds[one.folds < 2]).all()
    assert (short.folds[one.folds >= 2] == -1).all()
    assert short.sets.shape == (2, 90)
    assert (short.sets == one.sets[:2]).all()
    assert (one.shortened(1000).folds == one.folds).all()


def test_a_trial_is_completed_on_the_other_folds() -> None:
    """Judged on the first folds and then on the others, it is the trial of all folds at once."""
    one = judge(exemplars(), taught=20)
    task, normaliser = task_of(one), make_normaliser("l2", one.embeddings)
    short = one.shortened(30)
    assert 30 <= len(short.rows) < 70
    (first,) = short.trials(task, normaliser, "ridge", [3.0])
    (want,) = one.trials(task, normaliser, "ridge", [3.0])
    found = one.completed(first, short, task, ALONE)
    np.testing.assert_allclose(found.scores, want.scores, atol=1e-5)
    assert found.temperature == pytest.approx(want.temperature, rel=1e-3)
    np.testing.assert_allclose(found.losses, want.losses, atol=1e-3)


def test_a_sample_keeps_folds_and_classes() -> None:
    """Its rows are the first of each class in turn, with the folds that they had."""
    one = judge(exemplars())
    few = one.sample(31)
    kept = take_turns(one.every_target, 31)
    assert few.classes == 3
    for found, whole in (
        (few.embeddings, one.embeddings),
        (few.every_target, one.every_target),
        (few.folds, one.folds),
    ):
        np.testing.assert_array_equal(found, whole[kept])


def test_a_small_set_is_its_own_sample() -> None:
    """Up to so many rows nothing is left out."""
    one = judge(exemplars())
    assert one.sample(90) is one


def test_a_sample_that_cannot_be_judged_is_all_rows() -> None:
    """After fine-tuning the first rows of each class may all have been seen."""
    one = judge(exemplars(), taught=60)
    assert one.sample(30) is one


def test_the_loss_weighs_all_classes_alike() -> None:
    """A class of few images counts as much as one of many."""
    made = exemplars()
    folds = np.where((made.targets == 0) & (np.arange(90) > 30), -1, np.arange(90) % FOLDS)
    one = with_folds(made, folds)
    losses = (one.targets == 0).astype(float)
    assert one.loss(trial(one, losses)) == pytest.approx(1 / 3)


# The one-standard-error rule


def noisy(gap: float, *, spread: float = 1.0) -> tuple[Judge, list[list[Trial]]]:
    """Return two trials that differ by ``gap`` standard errors, the dearer being better."""
    one = judge(exemplars())
    rng = np.random.default_rng(0)
    difference = rng.normal(size=90)
    difference = (difference - difference.mean()) / difference.std()
    base = rng.random(90) * spread
    dear = trial(one, base)
    cheap = trial(one, base + difference + gap / np.sqrt(90))
    return one, [[cheap], [dear]]


def test_the_earlier_of_equals_is_taken() -> None:
    """Within one standard error of the best, the earlier group wins; beyond, the best."""
    one, groups = noisy(0.9)
    assert one.best(groups) is groups[0][0]
    one, groups = noisy(1.1)
    assert one.best(groups) is groups[1][0]


def test_slack_keeps_what_is_not_much_worse() -> None:
    """Beyond the errors one still contends while it is worse by no more than that share."""
    one, groups = noisy(3.0)
    ((cheap,), (dear,)) = groups
    share = one.loss(cheap) / one.loss(dear) - 1
    assert one.contenders(groups, errors=2.0) == [dear]
    assert one.contenders(groups, errors=2.0, slack=share - 0.01) == [dear]
    assert one.contenders(groups, errors=2.0, slack=share + 0.01) == [cheap, dear]


def test_differences_are_paired() -> None:
    """What is hard for both heads does not hide that one is better."""
    one, groups = noisy(1.1, spread=1e3)
    assert one.best(groups) is groups[1][0]


def test_the_earlier_group_wins_if_it_is_the_best() -> None:
    """The order of groups is the order of preference, and within a group the least loss counts."""
    one = judge(exemplars())
    low, high = trial(one, np.full(90, 0.1)), trial(one, np.full(90, 0.2))
    assert one.best([[high, low], [high]]) is low
    assert one.best([[high], [high, low]]) is low
    assert one.best([[low], [trial(one, np.full(90, 0.1))]]) is low
