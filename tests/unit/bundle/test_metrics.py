"""Metrics: equality with scikit-learn and SciPy, and edge cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as oracle

from topwork.bundle.documents import from_json, to_json
from topwork.bundle.metrics import (
    LeftOutLabel,
    Metrics,
    TriedHead,
    UnknownMetrics,
    evaluate,
    wilson_interval,
)

LABELS = ("a", "b", "c", "d")


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from(["float32", "float64"]))
def test_metrics_equal_scikit_learn(seed: int, images: int, dtype: str) -> None:
    """Confusion matrix, accuracy, precision, recall and log loss equal scikit-learn's."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, images)  # the fourth label has predictions but no image
    probabilities = rng.dirichlet([0.4, 0.3, 0.2, 0.1], images).clip(1e-6)
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(dtype)
    called = probabilities.argmax(axis=1)
    index = list(range(4))

    found = evaluate(targets, probabilities, LABELS, folds=5)

    assert (found.images, found.folds) == (images, 5)
    assert np.array_equal(found.confusion, oracle.confusion_matrix(targets, called, labels=index))
    assert found.accuracy == pytest.approx(oracle.accuracy_score(targets, called))
    precision, recall, _, support = oracle.precision_recall_fscore_support(
        targets, called, labels=index, zero_division=0
    )
    assert [label.label for label in found.per_label] == list(LABELS)
    assert [label.images for label in found.per_label] == support.tolist()
    assert [label.precision for label in found.per_label] == pytest.approx(precision.tolist())
    assert [label.recall for label in found.per_label] == pytest.approx(recall.tolist())
    chosen = probabilities[np.arange(images), targets].astype(float)
    assert found.log_loss == pytest.approx(-np.log(chosen).mean(), rel=1e-9)
    assert (found.accuracy_low, found.accuracy_high) == wilson_interval(
        int((called == targets).sum()), images
    )


def test_log_loss_of_probability_zero_is_finite() -> None:
    """A probability of 0 for the correct label gives a large but finite loss."""
    found = evaluate(np.array([0]), np.array([[0.0, 1.0]]), ("a", "b"), folds=5)
    assert 100 < found.log_loss < 1_000


def test_calibration_error_equals_a_manual_computation() -> None:
    """ECE is |confidence - accuracy| weighted by images; bins include their upper bound."""
    highest = np.array([10 / 15, 0.62, 0.9, 0.95, 1.0])  # bins 9, 9, 13, 14, 14
    probabilities = np.column_stack([highest, 1 - highest])
    targets = np.array([0, 1, 0, 0, 1])  # right, wrong, right, right, wrong
    found = evaluate(targets, probabilities, ("a", "b"), folds=5)
    first = 2 * abs((10 / 15 + 0.62) / 2 - 1 / 2)
    assert found.ece == pytest.approx((first + abs(0.9 - 1) + 2 * abs(0.975 - 1 / 2)) / 5)
    assert [group.images for group in found.reliability] == [0] * 9 + [2, 0, 0, 0, 1, 2]
    assert found.reliability[9].accuracy == 0.5
    assert found.reliability[9].confidence == pytest.approx((10 / 15 + 0.62) / 2)
    assert (found.reliability[0].low, found.reliability[14].high) == (0, 1)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_reliability_bins_count_every_image_once(seed: int, images: int) -> None:
    """The bins add up to all images and to the accuracy."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.4, 0.3, 0.2, 0.1], images).astype(np.float32)
    found = evaluate(rng.integers(0, 4, images), probabilities, LABELS, folds=5)
    bins = [group for group in found.reliability if group.images]
    assert sum(group.images for group in bins) == images
    right = sum(group.images * group.accuracy for group in bins)
    assert right / images == pytest.approx(found.accuracy)
    assert all(group.low < group.confidence <= group.high + 1e-6 for group in bins)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_right_has_one_bit_per_image(seed: int, images: int) -> None:
    """A bit is set if the most probable label of the image is correct, in input order."""
    rng = np.random.default_rng(seed)
    targets, probabilities = rng.integers(0, 4, images), rng.dirichlet([1.0] * 4, images)
    found = evaluate(targets, probabilities, LABELS, folds=5)
    bits = np.unpackbits(np.frombuffer(found.right, dtype=np.uint8), count=images)
    assert np.array_equal(bits, probabilities.argmax(axis=1) == targets)
    assert len(found.right) == -(-images // 8)


def test_metrics_json_round_trip() -> None:
    """Metrics with all optional fields decode to an equal value."""
    rng = np.random.default_rng(0)
    found = replace(
        evaluate(rng.integers(0, 4, 20), rng.dirichlet([1.0] * 4, 20), LABELS, folds=5),
        unknown=UnknownMetrics(
            auroc=0.9,
            false_reject_rate=0.05,
            detection_rate=0.4,
            per_label=(LeftOutLabel(label="a", auroc=0.8),),
        ),
        candidates=(
            TriedHead(
                head="ridge",
                normalisation="l2",
                strength=2.0,
                accuracy=0.9,
                log_loss=0.3,
                chosen=True,
            ),
        ),
    )
    assert from_json(to_json(found), Metrics, name="metrics.json") == found


@pytest.mark.slow
@settings(max_examples=100)
@given(st.integers(1, 5_000), st.floats(0, 1))
def test_wilson_interval_equals_scipy(trials: int, share: float) -> None:
    """The interval equals SciPy's and contains the observed share."""
    successes = round(trials * share)
    want = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(successes, trials)
    assert (low, high) == pytest.approx((want.low, want.high), abs=1e-7)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_wilson_interval_of_none_and_all() -> None:
    """0 of 10 has the lower bound 0, 10 of 10 the upper bound 1."""
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(10, 10)[1] == pytest.approx(1, abs=1e-12)
