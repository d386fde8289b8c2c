"""What was learnt depends on the exemplars only, and is judged on images that were not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from topwork.bundle.exemplars import FOLDS, Exemplars, from_bytes, make, merge, to_bytes
from topwork.bundle.head import Head, normalise, to_onnx
from topwork.learning.learn import STRENGTHS, _temperature, learn
from topwork.learning.logistic import balanced_weights

SEEDED = settings(derandomize=True, database=None, deadline=None)
WIDTH = 24
LABELS = ("amber", "blue", "crimson", "green", "violet")


def photos(
    label: str,
    count: int,
    *,
    seed: int = 0,
    apart: float = 1.0,
    alike: bool = False,
) -> Exemplars:
    """Return exemplars of one label, ``apart`` from those of the others, or all near-duplicates."""
    rng = np.random.default_rng([seed, LABELS.index(label)])
    centre = np.zeros(WIDTH)
    centre[4 * LABELS.index(label) :][:4] = apart
    embeddings = np.abs(centre + rng.normal(0, 0.7, (count, WIDTH))).astype(np.float32)
    prints = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    return make(embeddings, digests, prints[[0] * count] if alike else prints, [label] * count)


def garden(sizes: Mapping[str, int], *, seed: int = 0, apart: float = 1.0) -> Exemplars:
    """Return exemplars of several labels."""
    return merge([photos(label, n, seed=seed, apart=apart) for label, n in sizes.items()])


def same(one: Head, other: Head) -> bool:
    """Return whether two heads are equal to the last bit."""
    return (
        one.weights.tobytes() == other.weights.tobytes()
        and one.bias.tobytes() == other.bias.tobytes()
        and (one.temperature, one.strength) == (other.temperature, other.strength)
    )


# The same set, the same head


def test_the_order_of_arrival_leaves_no_trace() -> None:
    """The same exemplars, in any order and in any parts, give a head of equal bytes."""
    parts = [photos(label, 20) for label in LABELS]
    want = learn(merge(parts), seed=0)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(parts))
        shuffled = [parts[index] for index in order]
        found = learn(merge([merge(shuffled[:2]), *shuffled[2:]]), seed=0)
        assert same(found.head, want.head)
        assert found.metrics == want.metrics
        assert to_onnx(found.head) == to_onnx(want.head)


def test_a_fifth_class_is_learnt_as_if_it_had_always_been_there() -> None:
    """A fit on 5 classes equals a fit on 4 whose stored shard the fifth is added to, exactly."""
    four = merge([photos(label, 30) for label in LABELS[:4]])
    fifth = photos("violet", 12)
    learn(four, seed=7)  # nothing of it is carried over
    added = learn(merge([from_bytes(to_bytes(four)), from_bytes(to_bytes(fifth))]), seed=7)
    fitted = learn(
        merge([photos(label, 12 if label == "violet" else 30) for label in LABELS]), seed=7
    )
    assert same(added.head, fitted.head)
    assert added.metrics == fitted.metrics


def test_the_seed_moves_the_folds_only() -> None:
    """Another seed is another split: other metrics, and the same head but for what they choose."""
    made = garden(dict.fromkeys(LABELS, 30), apart=0.6)
    found = [learn(made, seed=seed) for seed in range(4)]
    assert len({one.metrics.log_loss for one in found}) == 4
    for one in found:
        if one.head.strength == found[0].head.strength:
            assert one.head.weights.tobytes() == found[0].head.weights.tobytes()


def test_the_head_is_scikit_learns() -> None:
    """Its probabilities are those of scikit-learn's balanced regression at its strength."""
    made = garden({"amber": 60, "blue": 25, "green": 8}, apart=0.6)
    head = learn(made, seed=0).head
    features = normalise(made.embeddings).astype(float)
    oracle = LogisticRegression(
        C=head.strength, class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(features, made.targets)
    logits = oracle.decision_function(features) / head.temperature
    want = np.exp(log_softmax(logits, axis=1))
    np.testing.assert_allclose(head.probabilities(made.embeddings), want, atol=1e-4)


# Temperature


def scaled_loss(
    inverse: float,
    logits: NDArray[np.floating],
    targets: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> float:
    """Return the weighted loss of logits at an inverse temperature, against Platt's aims."""
    counts, classes = np.bincount(targets), logits.shape[1]
    doubt = 1 / (counts[targets] + 2)
    aims = np.repeat(doubt[:, None] / (classes - 1), classes, axis=1)
    aims[np.arange(len(targets)), targets] = 1 - doubt
    log_p = log_softmax(inverse * logits.astype(float), axis=1)
    return float(-(weights @ (aims * log_p).sum(axis=1)) / weights.sum())


@settings(SEEDED, max_examples=120)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 6),
    st.integers(5, 80),
    st.floats(-1, 8),
    st.floats(0.05, 30),
)
def test_the_temperature_is_the_best_there_is(
    seed: int, classes: int, rows: int, signal: float, scale: float
) -> None:
    """No temperature from 1/20 to 20 has less loss, be the logits good, useless or inverted."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    noisy = rng.normal(size=(rows, classes)) + signal * np.eye(classes)[targets]
    logits = np.asarray(scale * noisy, dtype=np.float32)
    weights = balanced_weights(targets, classes)
    best = minimize_scalar(
        lambda log: scaled_loss(np.exp(log), logits, targets, weights),
        bounds=(np.log(1 / 20), np.log(20)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    found = _temperature(logits, targets, weights)
    assert 1 / 20 - 1e-9 <= found <= 20 + 1e-9
    assert scaled_loss(1 / found, logits, targets, weights) <= best.fun + 1e-5 * (1 + best.fun)


def test_probabilities_are_calibrated() -> None:
    """On new photos, the answers are right about as often as their probabilities say."""
    sizes = dict.fromkeys(LABELS, 150)
    learned = learn(garden(sizes, apart=1.0), seed=0)
    new = garden(sizes, seed=1, apart=1.0)
    found = learned.head.probabilities(new.embeddings)
    right = (found.argmax(axis=1) == new.targets).mean()
    assert 0.5 < right < 0.9
    assert abs(found.max(axis=1).mean() - right) < 0.05


# Few, many, and alike


@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_five_photos_a_label_are_enough(labels: int, seed: int) -> None:
    """With 5 photos of each label the head tells new photos apart, and everything is finite."""
    learned = learn(garden(dict.fromkeys(LABELS[:labels], 5), seed=seed, apart=2.0), seed=seed)
    new = garden(dict.fromkeys(LABELS[:labels], 20), seed=seed + 100, apart=2.0)
    found = learned.head.probabilities(new.embeddings)
    assert np.isfinite(found).all()
    assert np.isfinite(learned.metrics.log_loss)
    assert (found.argmax(axis=1) == new.targets).mean() > 0.95


def test_a_small_class_is_not_drowned() -> None:
    """10 photos of a new class are recalled beside 300 of each old one, in new photos too."""
    sizes = {"amber": 300, "blue": 300, "green": 300, "violet": 10}
    learned = learn(garden(sizes, apart=1.5), seed=0)
    new = garden(dict.fromkeys(sizes, 100), seed=1, apart=1.5)
    called = learned.head.probabilities(new.embeddings).argmax(axis=1)
    recall = [(called[new.targets == target] == target).mean() for target in range(4)]
    assert recall[3] > 0.85  # without balance it is 0
    assert min(recall[:3]) > 0.85
    assert learned.metrics.per_label[3].recall >= 0.6


# The metrics


def test_metrics_are_about_all_exemplars() -> None:
    """Every exemplar is judged once, under its own label."""
    sizes = {"amber": 12, "blue": 7, "green": 5}
    metrics = learn(garden(sizes), seed=0).metrics
    assert (metrics.images, metrics.folds) == (24, FOLDS)
    assert {one.label: one.images for one in metrics.per_label} == sizes


def random_labels(rows: int, labels: Sequence[str], *, copies: int = 1) -> Exemplars:
    """Return exemplars whose labels mean nothing, each photo there in near-equal copies."""
    rng = np.random.default_rng(5)
    first = rng.normal(size=(rows, WIDTH)).repeat(copies, axis=0)
    prints = rng.integers(0, 256, (rows, 32), dtype=np.uint8).repeat(copies, axis=0)
    prints[:, 0] ^= rng.integers(0, 256, rows * copies, dtype=np.uint8)  # up to 8 bits
    return make(
        (first + rng.normal(0, 1e-3, first.shape)).astype(np.float32),
        rng.integers(0, 256, (rows * copies, 32), dtype=np.uint8),
        prints,
        [labels[index] for index in rng.integers(0, len(labels), rows) for _ in range(copies)],
    )


@pytest.mark.parametrize("copies", [1, 3])
def test_metrics_are_out_of_fold(copies: int) -> None:
    """Labels that mean nothing are guessed by chance, also when each photo was uploaded thrice."""
    made = random_labels(150, LABELS[:3], copies=copies)
    learned = learn(made, seed=0)
    sigma = np.sqrt(2 / 9 / 150)
    assert abs(learned.metrics.accuracy - 1 / 3) < 3.5 * sigma
    assert learned.metrics.log_loss > 0.98 * np.log(3)
    # What leaks would show: on photos that it saw, the head does better than by chance.
    memory = LogisticRegression(C=STRENGTHS[-1]).fit(normalise(made.embeddings), made.targets)
    assert memory.score(normalise(made.embeddings), made.targets) > 1 / 3 + 3.5 * sigma


def test_metrics_agree_with_new_photos() -> None:
    """The accuracy on photos that never were exemplars lies near the one that was promised."""
    sizes = dict.fromkeys(LABELS, 80)
    learned = learn(garden(sizes, apart=0.6), seed=0)
    new = garden(dict.fromkeys(LABELS, 400), seed=1, apart=0.6)
    found = (learned.head.probabilities(new.embeddings).argmax(axis=1) == new.targets).mean()
    assert learned.metrics.accuracy_low - 0.03 < found < learned.metrics.accuracy_high + 0.03


# Photos that are all alike


def test_labels_of_one_photo_each_are_learnt() -> None:
    """Two labels, each of near-duplicates only, give a head, whichever folds they fall into."""
    for seed in range(10):
        made = merge([photos(label, 6, alike=True, apart=2.0) for label in LABELS[:2]])
        found = learn(made, seed=seed).head.probabilities(made.embeddings)
        assert (found.argmax(axis=1) == made.targets).all()


def test_a_burst_of_photos_spoils_no_other_class() -> None:
    """A class of near-duplicates only leaves old classes as certain as they were without it."""
    old = garden(dict.fromkeys(LABELS[:3], 40), apart=1.5)
    before = learn(old, seed=0).head.probabilities(old.embeddings).max(axis=1).mean()
    both = merge([old, photos("violet", 20, alike=True, apart=1.5)])
    after = learn(both, seed=0).head.probabilities(old.embeddings).max(axis=1).mean()
    assert before > 0.9
    assert after > before - 0.1
