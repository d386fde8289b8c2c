"""Out-of-distribution detection: new classes are detected, known images seldom rejected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from topwork.arrays import Float32Array, FloatArray
from topwork.bundle.exemplars import Exemplars, make
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.learning import unknown
from topwork.learning.learn import Learned, learn
from topwork.learning.unknown import FALSE_REJECTS, auroc

WIDTH = 40


def cluster(number: int, count: int, *, seed: int = 0, spread: float = 0.5) -> Float32Array:
    """Return non-negative embeddings around the centre of a class."""
    centre = np.abs(np.random.default_rng([7, number]).normal(size=WIDTH))
    noise = np.random.default_rng([seed, number]).normal(size=(count, WIDTH))
    return np.abs(centre + spread * noise).astype(np.float32)


def exemplars(counts: list[int], *, seen: int = 0) -> Exemplars:
    """Return exemplars of classes 0, 1, ...; the first ``seen`` of each were seen."""
    rng = np.random.default_rng(3)
    rows = sum(counts)
    prints = rng.integers(0, 256, (2, rows, 32), dtype=np.uint8)
    return make(
        np.concatenate([cluster(number, count) for number, count in enumerate(counts)]),
        prints[0],
        prints[1],
        [f"c{number:02}" for number, count in enumerate(counts) for _ in range(count)],
        seen=np.concatenate([np.arange(count) < seen for count in counts]),
    )


def shares(learned: Learned, *images: Float32Array) -> list[float]:
    """Return the share of each batch that is detected as unknown."""
    assert learned.head.unknown is not None
    limit = learned.head.unknown.threshold
    return [float((learned.head.unknown_probabilities(batch) >= limit).mean()) for batch in images]


@pytest.mark.slow
@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
)
def test_auroc_matches_scikit_learn(known: list[int], unknown_values: list[int]) -> None:
    """The AUROC matches scikit-learn's, with many ties."""
    truth = [0] * len(known) + [1] * len(unknown_values)
    expected = roc_auc_score(truth, known + unknown_values)
    assert auroc(np.array(known) / 9, np.array(unknown_values) / 9) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["nearest_mean", "ridge", "logistic", "kernel", "fourier"])
def test_class_that_was_never_learnt_is_detected(kind: HeadKind) -> None:
    """Images of a new class are detected far more often than known images are rejected."""
    learned = learn(exemplars([60] * 4), seed=0, recipe=Recipe(head=kind))
    known = np.concatenate([cluster(number, 200, seed=9) for number in range(4)])
    rejected, detected = shares(learned, known, cluster(4, 200))
    assert rejected < 2.5 * FALSE_REJECTS
    assert detected > 0.6


def test_about_one_in_twenty_known_images_is_rejected() -> None:
    """The rate on new images and the metric are near FALSE_REJECTS."""
    learned = learn(exemplars([150] * 4), seed=0)
    (rejected,) = shares(
        learned, np.concatenate([cluster(number, 500, seed=9) for number in range(4)])
    )
    assert learned.metrics.unknown is not None
    assert 0.02 < rejected < 0.09
    assert 0.02 < learned.metrics.unknown.false_reject_rate < 0.09


def test_probabilities_at_the_threshold_count_as_unknown() -> None:
    """The comparison with the threshold is the same as in serving."""
    called = unknown.is_unknown(np.array([0.4, 0.5, 0.6]), 0.5)
    assert called.tolist() == [False, True, True]


@pytest.mark.parametrize("kind", ["nearest_mean", "ridge", "logistic", "kernel", "fourier"])
@pytest.mark.parametrize("normalisation", ["l2", "none"])
def test_distant_images_are_unknown(kind: HeadKind, normalisation: Normalisation) -> None:
    """Random directions are unknown, and long embeddings if they are not normalised."""
    recipe = Recipe(head=kind, normalisation=normalisation)
    learned = learn(exemplars([60] * 4), seed=0, recipe=recipe)
    random = np.random.default_rng(0).normal(size=(100, WIDTH)).astype(np.float32)
    assert shares(learned, random)[0] > 0.95
    longer = shares(learned, 10 * cluster(0, 100, seed=9))[0]
    if normalisation == "none":
        assert longer == 1
    else:
        assert longer < 0.2  # normalisation removes the length


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [[5, 5, 5], [40, 40], [6] * 12])
def test_weights_of_signals_have_the_right_sign(counts: list[int], seed: int) -> None:
    """A larger distance or a lower logit never lowers the unknown probability."""
    found = learn(exemplars(counts), seed=seed, recipe=Recipe(normalisation="l2")).head.unknown
    assert found is not None
    assert found.logit_weight < 0
    assert found.distance_weight > 0
    assert 0 < found.threshold < 1.001


def test_probability_rises_with_the_deviation_even_if_left_out_classes_look_known() -> None:
    """Left-out classes that are more usual than known images do not reverse the detector."""
    rng = np.random.default_rng(0)
    known, left_out = rng.normal(size=(2, 200))
    slope, _ = unknown._fit_probability([unknown._Trial(known=known, left_out={0: left_out - 1})])
    assert slope == unknown._MIN_SLOPE
    slope, bias = unknown._fit_probability(
        [unknown._Trial(known=known, left_out={0: left_out + 1})]
    )
    assert slope > 0.5
    assert slope * 0.5 + bias == pytest.approx(0, abs=0.2)  # as likely known as unknown


def test_each_signal_alone_makes_an_image_unknown() -> None:
    """A usual logit does not outweigh an unusual distance, nor the reverse."""
    rng = np.random.default_rng(0)
    scores = np.array([[3.0, 0.0], [0.0, 9.0]])[np.arange(200) % 2] + rng.normal(size=(200, 2))
    known = unknown._Signals.of(scores, rng.normal(5, 1, 200))
    usual = unknown._Usual.of(known, 2)
    usual_logits, low_logits = np.array([[3.0, 0.0], [0.0, 9.0]]), np.array([[0.0, 0], [0, 6.0]])

    def deviations(scores: FloatArray, distance: float) -> FloatArray:
        return usual.deviations(unknown._Signals.of(scores, np.full(2, distance)))

    assert deviations(usual_logits, 5).max() < 0.5
    assert deviations(low_logits, 5).min() > 2  # 6 is low for the second class
    assert deviations(usual_logits, 9).min() > 3


def test_single_class_gives_no_detection() -> None:
    """With a single class there is neither a detector nor a metric."""
    learned = learn(exemplars([30]), seed=0)
    assert learned.head.unknown is None
    assert learned.metrics.unknown is None


@pytest.mark.parametrize("classes", [2, 12, 25])
def test_every_class_is_left_out_once(classes: int) -> None:
    """Each class is left out once, in label order, also with more classes than groups."""
    made = exemplars([20] * classes)
    learned = learn(made, seed=0, recipe=Recipe(head="ridge"))
    found = learned.metrics.unknown
    assert found is not None
    assert tuple(label.label for label in found.per_label) == made.labels
    assert found.auroc == pytest.approx(np.mean([label.auroc for label in found.per_label]))
    assert found.auroc > 0.8
    assert shares(learned, cluster(40, 100))[0] > 0.6


def test_class_with_one_evaluated_image_is_left_out() -> None:
    """A class of which the backbone saw all images except one is included."""
    made = exemplars([30, 30, 5], seen=4)
    found = learn(made, seed=0).metrics.unknown
    assert found is not None
    assert [label.label for label in found.per_label] == ["c00", "c01", "c02"]


def test_class_of_seen_images_is_not_left_out() -> None:
    """Images that the backbone was fine-tuned on would look known."""
    made = exemplars([30, 30, 5], seen=5)
    learned = learn(made, seed=0)
    assert learned.metrics.unknown is not None
    assert [label.label for label in learned.metrics.unknown.per_label] == ["c00", "c01"]
    assert len(learned.judged.rows) == 50


def test_one_evaluated_fold_is_enough() -> None:
    """If fine-tuning saw all folds except one, every class is still left out."""
    made = exemplars([40] * 4)
    tuned = replace(made, seen=made.folds(0) != 2)
    metrics = learn(tuned, seed=0).metrics
    assert metrics.images == int((made.folds(0) == 2).sum())
    assert metrics.unknown is not None
    assert [label.label for label in metrics.unknown.per_label] == list(made.labels)


def test_equal_embeddings_are_not_unknown() -> None:
    """If all known images have one embedding, this embedding is known."""
    made = exemplars([30, 30])
    made.embeddings[:] = made.embeddings[0]
    learned = learn(made, seed=0)
    assert shares(learned, made.embeddings) == [0]
