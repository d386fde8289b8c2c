"""Cross-validation: out-of-fold scores, weights, samples and the one-standard-error rule."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS, Exemplars, make
from topwork.bundle.features import make as make_normaliser
from topwork.bundle.recipe import HeadKind
from topwork.learning.cross_validation import CrossValidation, Trial
from topwork.learning.families import FAMILIES
from topwork.learning.parallel import SINGLE_THREAD
from topwork.learning.task import Task, take_turns

KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
WIDTH = 12


def exemplars(rows: int = 90, classes: int = 3, *, seed: int = 0) -> Exemplars:
    """Return exemplars of some classes, around separate centres."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    embeddings = rng.normal(size=(rows, WIDTH)) + 2 * np.eye(classes, WIDTH)[targets]
    prints = rng.integers(0, 256, (2, rows, 32), dtype=np.uint8)
    return make(
        embeddings.astype(np.float32), prints[0], prints[1], [f"c{target}" for target in targets]
    )


def new_validation(made: Exemplars, *, seen: int = 0) -> CrossValidation:
    """Return a cross-validation with five folds; the first ``seen`` rows are in no fold."""
    folds = np.arange(len(made)) % FOLDS
    folds[:seen] = -1
    return with_folds(made, folds)


def with_folds(made: Exemplars, folds: NDArray[np.int64]) -> CrossValidation:
    """Return a cross-validation with these folds."""
    return CrossValidation(
        embeddings=made.embeddings, every_target=made.targets, classes=len(made.labels), folds=folds
    )


def task_of(validation: CrossValidation) -> Task:
    """Return the task of L2-normalised features."""
    return validation.task(make_normaliser("l2", validation.embeddings))


def trial(validation: CrossValidation, losses: NDArray[np.floating]) -> Trial:
    """Return a trial with these losses."""
    normaliser = make_normaliser("l2", validation.embeddings)
    return Trial(
        kind="ridge",
        normaliser=normaliser,
        strength=1.0,
        scores=np.zeros((len(validation.rows), 3), dtype=np.float32),
        temperature=1.0,
        losses=losses.astype(np.float32),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_out_of_fold(kind: HeadKind) -> None:
    """Each row's scores are by the head of all rows outside its fold, including seen rows."""
    validation = new_validation(exemplars(), seen=20)
    task = task_of(validation)
    normaliser = make_normaliser("l2", validation.embeddings)
    (found,) = validation.trials(task, normaliser, kind, [3.0])
    assert found.scores.shape == (70, 3)
    for fold in range(FOLDS):
        others = (validation.folds != fold)[None]
        ((scorer,),) = FAMILIES[kind].solve(task, others, [3.0], final=True)
        in_fold = validation.folds[validation.rows] == fold
        expected = scorer(task.features[validation.rows[in_fold]])
        found_here = found.scores[in_fold] - found.scores[in_fold].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(
            found_here, expected - expected.mean(axis=1, keepdims=True), atol=0.02
        )


def test_losses_match_the_probabilities() -> None:
    """A trial's losses are the negative log probabilities of the targets."""
    validation = new_validation(exemplars())
    normaliser = make_normaliser("l2", validation.embeddings)
    for found in validation.trials(task_of(validation), normaliser, "logistic", [1.0, 30.0]):
        p = found.probabilities()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
        chosen = p[np.arange(len(p)), validation.targets]
        np.testing.assert_allclose(found.losses, -np.log(chosen), atol=1e-5)
        assert validation.accuracy(found) == (p.argmax(axis=1) == validation.targets).mean()


def test_class_in_a_single_fold_has_no_weight() -> None:
    """A row has weight 0 if no other fold has its class; other weights are positive."""
    made = exemplars()
    folds = np.arange(90) % FOLDS
    folds[made.targets == 2] = 4
    validation = with_folds(made, folds)
    assert (validation.weights[validation.targets == 2] == 0).all()
    assert (validation.weights[validation.targets != 2] > 0).all()
    folds[
        np.flatnonzero(made.targets == 2)[0]
    ] = -1  # an image of the class that is always trained on
    with_row = with_folds(made, folds)
    assert (with_row.weights > 0).all()


def test_first_folds_evaluates_the_first_folds() -> None:
    """It evaluates as many folds as have enough rows; other rows are always trained on."""
    validation = new_validation(exemplars())
    race = validation.first_folds(30)
    assert race.folds.max() == 1
    assert (race.folds[validation.folds < 2] == validation.folds[validation.folds < 2]).all()
    assert (race.folds[validation.folds >= 2] == -1).all()
    assert race.sets.shape == (2, 90)
    assert (race.sets == validation.sets[:2]).all()
    assert (validation.first_folds(1000).folds == validation.folds).all()


def test_complete_adds_the_remaining_folds() -> None:
    """A trial of the first folds, completed, equals a trial of all folds."""
    validation = new_validation(exemplars(), seen=20)
    task, normaliser = task_of(validation), make_normaliser("l2", validation.embeddings)
    race = validation.first_folds(30)
    assert 30 <= len(race.rows) < 70
    (first,) = race.trials(task, normaliser, "ridge", [3.0])
    (expected,) = validation.trials(task, normaliser, "ridge", [3.0])
    found = validation.complete(first, race, task, SINGLE_THREAD)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-3)
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-3)


def test_a_sample_keeps_folds_and_classes() -> None:
    """A sample has the first rows of each class, with their folds."""
    validation = new_validation(exemplars())
    sample = validation.sample(31)
    sampled = take_turns(validation.every_target, 31)
    assert sample.classes == 3
    for found, whole in (
        (sample.embeddings, validation.embeddings),
        (sample.every_target, validation.every_target),
        (sample.folds, validation.folds),
    ):
        np.testing.assert_array_equal(found, whole[sampled])


def test_a_small_set_is_its_own_sample() -> None:
    """A sample of all rows is the same object."""
    validation = new_validation(exemplars())
    assert validation.sample(90) is validation


def test_sample_without_evaluated_rows_is_all_rows() -> None:
    """After fine-tuning the first rows of each class may all have been seen."""
    validation = new_validation(exemplars(), seen=60)
    assert validation.sample(30) is validation


def test_loss_balances_the_classes() -> None:
    """A class with few images has the same weight as a class with many."""
    made = exemplars()
    folds = np.where((made.targets == 0) & (np.arange(90) > 30), -1, np.arange(90) % FOLDS)
    validation = with_folds(made, folds)
    losses = (validation.targets == 0).astype(float)
    assert validation.loss(trial(validation, losses)) == pytest.approx(1 / 3)


# The one-standard-error rule


def noisy(gap: float, *, spread: float = 1.0) -> tuple[CrossValidation, list[list[Trial]]]:
    """Return two trials that differ by ``gap`` standard errors; the second is better."""
    validation = new_validation(exemplars())
    rng = np.random.default_rng(0)
    difference = rng.normal(size=90)
    difference = (difference - difference.mean()) / difference.std()
    base = rng.random(90) * spread
    dear = trial(validation, base)
    cheap = trial(validation, base + difference + gap / np.sqrt(90))
    return validation, [[cheap], [dear]]


def test_best_prefers_the_earlier_group() -> None:
    """Within one standard error the earlier group is chosen, beyond it the best."""
    validation, groups = noisy(0.9)
    assert validation.best(groups) is groups[0][0]
    validation, groups = noisy(1.1)
    assert validation.best(groups) is groups[1][0]


def test_contenders_include_trials_within_the_slack() -> None:
    """A clearly worse trial remains a contender if its loss is within the slack."""
    validation, groups = noisy(3.0)
    ((cheap,), (dear,)) = groups
    share = validation.loss(cheap) / validation.loss(dear) - 1
    assert validation.contenders(groups, errors=2.0) == [dear]
    assert validation.contenders(groups, errors=2.0, slack=share - 0.01) == [dear]
    assert validation.contenders(groups, errors=2.0, slack=share + 0.01) == [cheap, dear]


def test_differences_are_paired() -> None:
    """A difference between heads is found despite a large variance between images."""
    validation, groups = noisy(1.1, spread=1e3)
    assert validation.best(groups) is groups[1][0]


def test_best_uses_the_least_loss_of_a_group() -> None:
    """Groups are in order of preference; within a group the least loss counts."""
    validation = new_validation(exemplars())
    low, high = trial(validation, np.full(90, 0.1)), trial(validation, np.full(90, 0.2))
    assert validation.best([[high, low], [high]]) is low
    assert validation.best([[high], [high, low]]) is low
    assert validation.best([[low], [trial(validation, np.full(90, 0.1))]]) is low
