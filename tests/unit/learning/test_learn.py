"""What was learnt depends on the exemplars only, and is judged on images that were not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from topwork.bundle.documents import from_json, to_json
from topwork.bundle.exemplars import FOLDS, Exemplars, make, merge, shard_of, split
from topwork.bundle.features import make as make_normaliser
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.metrics import Metrics, evaluate
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.bundle.shards import Shard, open_shard, to_bytes
from topwork.errors import Corrupt, NotReady
from topwork.learning import calibration, choosing, judging, ridge, task
from topwork.learning.choosing import NORMALISATIONS
from topwork.learning.families import FAMILIES
from topwork.learning.judging import Judge, Trial
from topwork.learning.learn import Learned, learn
from topwork.runtime.backend import open_session

KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
ALL_NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
LOGISTIC = Recipe(head="logistic", normalisation="sqrt_l2")
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
    return joined(photos(label, n, seed=seed, apart=apart) for label, n in sizes.items())


def joined(parts: Iterable[Exemplars]) -> Exemplars:
    """Return the exemplars of all parts."""
    return merge([pair for part in parts for pair in split(part)])


def same(one: Learned, other: Learned) -> bool:
    """Return whether two heads are equal to the last bit, and what is said of them, too."""
    return to_onnx(one.head) == to_onnx(other.head) and one.metrics == other.metrics


# The same set, the same head


def dealt(made: Exemplars, seed: int) -> list[tuple[str, Shard]]:
    """Return exemplars in several shards a label, their rows and they themselves in any order."""
    rng = np.random.default_rng(seed)
    pairs = []
    for label, shard in split(made):
        for rows in np.split(rng.permutation(len(shard)), np.sort(rng.integers(1, len(shard), 2))):
            arrays = {
                name: getattr(shard, name)[rows]
                for name in ("embeddings", "digests", "fingerprints", "contents", "seen")
            }
            pairs.append(
                (
                    label,
                    replace(shard, names=[""] * len(rows), thumbnails=[b""] * len(rows), **arrays),
                )
            )
    return [pairs[index] for index in rng.permutation(len(pairs))]


@pytest.mark.slow
@settings(derandomize=True, database=None, deadline=None, max_examples=8)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([*KINDS, "auto"]))
def test_neither_arrival_nor_threads_leave_a_trace(
    seed: int, threads: int, kind: HeadKind | Literal["auto"]
) -> None:
    """The same exemplars in any parts, in any order, by any threads give a head of equal bytes."""
    made = garden(dict.fromkeys(LABELS, 20), apart=0.6)
    recipe = Recipe(head=kind)
    found = learn(merge(dealt(made, seed)), seed=0, recipe=recipe, threads=threads)
    assert same(found, learn(made, seed=0, recipe=recipe))


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_a_fifth_class_is_learnt_as_if_it_had_always_been_there(
    kind: HeadKind | Literal["auto"], tmp_path: Path
) -> None:
    """A fit on 5 classes equals a fit on 4 whose stored shards the fifth's is added to, exactly."""
    four = garden(dict.fromkeys(LABELS[:4], 30))
    fifth = photos("violet", 12)
    recipe = Recipe(head=kind)
    learn(four, seed=7, recipe=recipe)  # nothing of it is carried over
    stored = []
    for part in (four, fifth):
        for label in part.labels:
            file = tmp_path / label
            file.write_bytes(to_bytes(shard_of(part, label)))
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            stored.append((label, open_shard(file, digest)))
    added = learn(merge(stored), seed=7, recipe=recipe)
    fitted = learn(
        garden({label: 12 if label == "violet" else 30 for label in LABELS}), seed=7, recipe=recipe
    )
    assert same(added, fitted)


@pytest.mark.parametrize("head", ["auto", *KINDS])
def test_threads_change_nothing(head: HeadKind | Literal["auto"]) -> None:
    """Side by side or one after the other, twice: the same bytes."""
    made = garden(dict.fromkeys(LABELS, 12))
    recipe = Recipe(head=head)
    want = learn(made, seed=0, recipe=recipe, threads=1)
    for threads in (1, 4):
        assert same(learn(made, seed=0, recipe=recipe, threads=threads), want)


def test_the_seed_moves_the_folds_only() -> None:
    """Another seed is another split: other metrics, and the same head but for what they choose."""
    made = garden(dict.fromkeys(LABELS, 30), apart=0.6)
    found = [learn(made, seed=seed, recipe=LOGISTIC) for seed in range(4)]
    assert len({one.metrics.log_loss for one in found}) == 4
    for one in found:
        if (one.kind, one.strength) == (found[0].kind, found[0].strength):
            assert one.head.scorer.weights.tobytes() == found[0].head.scorer.weights.tobytes()


def test_the_head_is_scikit_learns() -> None:
    """Its probabilities are those of scikit-learn's balanced regression at its strength."""
    made = garden({"amber": 60, "blue": 25, "green": 8}, apart=0.6)
    learned = learn(made, seed=0, recipe=LOGISTIC)
    head = learned.head
    features = head.normaliser(made.embeddings).astype(float)
    oracle = LogisticRegression(
        C=learned.strength, class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(features, made.targets)
    logits = oracle.decision_function(features) / head.temperature
    want = np.exp(log_softmax(logits, axis=1))
    np.testing.assert_allclose(head.probabilities(made.embeddings), want, atol=1e-4)


# Calibration


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
    features = make_normaliser("l2", made.embeddings)(made.embeddings)
    memory = LogisticRegression(C=300).fit(features, made.targets)
    assert memory.score(features, made.targets) > 1 / 3 + 3.5 * sigma


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
        made = joined(photos(label, 6, alike=True, apart=2.0) for label in LABELS[:2])
        found = learn(made, seed=seed).head.probabilities(made.embeddings)
        assert (found.argmax(axis=1) == made.targets).all()


def test_a_burst_of_photos_spoils_no_other_class() -> None:
    """A class of near-duplicates only leaves old classes as certain as they were without it."""
    old = garden(dict.fromkeys(LABELS[:3], 40), apart=1.5)
    before = learn(old, seed=0).head.probabilities(old.embeddings).max(axis=1).mean()
    both = joined([old, photos("violet", 20, alike=True, apart=1.5)])
    after = learn(both, seed=0).head.probabilities(old.embeddings).max(axis=1).mean()
    assert before > 0.9
    assert after > before - 0.1


# The recipe


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ALL_NORMALISATIONS)
def test_a_recipe_is_followed(kind: HeadKind, normalisation: Normalisation) -> None:
    """What it names is learnt, and nothing else is tried; the graph says what NumPy says."""
    made = garden(dict.fromkeys(LABELS, 12), apart=2.0)
    learned = learn(made, seed=0, recipe=Recipe(head=kind, normalisation=normalisation))
    assert (learned.kind, learned.head.normaliser.kind) == (kind, normalisation)
    tried = learned.metrics.candidates
    assert {(one.head, one.normalisation) for one in tried} == {(kind, normalisation)}
    assert [one.strength for one in tried] == list(FAMILIES[kind].strengths)
    new = garden(dict.fromkeys(LABELS, 20), seed=1, apart=2.0)
    graph = open_session(to_onnx(learned.head), output="unknown")
    logits, unknown = graph.run_outputs(new.embeddings, ("logits", "unknown"))
    want = learned.head.logits(new.embeddings)
    np.testing.assert_allclose(logits, want, atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(
        unknown, learned.head.unknown_probabilities(new.embeddings), atol=1e-4
    )
    assert (logits.argmax(axis=1) == new.targets).mean() > 0.9


def test_one_candidate_is_chosen() -> None:
    """Of all that were tried exactly one is, and its numbers are those of the metrics."""
    learned = learn(garden(dict.fromkeys(LABELS, 30)), seed=0)
    (chosen,) = (one for one in learned.metrics.candidates if one.chosen)
    assert (chosen.head, chosen.strength) == (learned.kind, learned.strength)
    assert chosen.normalisation == learned.head.normaliser.kind
    assert chosen.normalisation in NORMALISATIONS
    assert chosen.accuracy == pytest.approx(learned.metrics.accuracy)
    assert chosen.log_loss == pytest.approx(learned.metrics.log_loss, rel=1e-3)  # classes are even
    best = min(one.log_loss for one in learned.metrics.candidates)
    assert chosen.log_loss < best + 0.1


def test_what_is_clearly_worse_is_not_judged_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The winner is judged on all images, one that is far behind on the first folds' only."""
    monkeypatch.setattr(choosing, "RACED", 60)
    made = garden(dict.fromkeys(LABELS, 40))
    made.embeddings[:, 20:] *= 9  # they say nothing, and nearest means are lost in them
    tried = learn(made, seed=0).metrics.candidates
    (chosen,) = (one for one in tried if one.chosen)
    (mean,) = (one for one in tried if one.head == "nearest_mean")
    assert chosen.images == 200
    assert 60 <= mean.images < 200
    monkeypatch.setattr(choosing, "RACED", 200)
    (again,) = (one for one in learn(made, seed=0).metrics.candidates if one.chosen)
    assert (again.head, again.strength) == (chosen.head, chosen.strength)
    assert again.log_loss == pytest.approx(chosen.log_loss, abs=1e-3)


def test_the_first_of_equals_is_taken() -> None:
    """Where no image differs from another, no head is better: logistic, on square roots."""
    made = garden(dict.fromkeys(LABELS, 12))
    learned = learn(replace(made, embeddings=np.ones_like(made.embeddings)), seed=0)
    assert (learned.kind, learned.head.normaliser.kind) == ("logistic", "sqrt_l2")
    assert len({one.head for one in learned.metrics.candidates}) == 4


def test_a_kernel_is_taken_where_it_is_better() -> None:
    """Classes of two clusters each, in a cross, are told apart by no linear head."""
    rng = np.random.default_rng(0)
    corner = np.arange(200) % 4
    embeddings = rng.normal(0, 0.3, (200, WIDTH))
    embeddings[:, 0] += np.where(corner % 2, 2, -2)
    embeddings[:, 1] += np.where(corner // 2, 2, -2)
    prints = rng.integers(0, 256, (2, 200, 32), dtype=np.uint8)
    cross = np.where((corner == 0) | (corner == 3), "even", "odd").tolist()
    made = make(embeddings.astype(np.float32), prints[0], prints[1], cross)
    learned = learn(made, seed=0)
    assert learned.kind == "kernel"
    assert learned.metrics.accuracy > 0.95
    linear = [one.accuracy for one in learned.metrics.candidates if one.head == "logistic"]
    assert max(linear) < 0.7


# What was seen


def test_seen_images_teach_and_are_never_judged() -> None:
    """The judged are all others, in order; those that were seen are learnt from all the same."""
    made = garden({"amber": 30, "blue": 30})
    seen = np.arange(60) % 3 == 0
    learned = learn(replace(made, seen=seen), seed=0)
    assert learned.judged.rows.tolist() == np.flatnonzero(~seen).tolist()
    assert learned.judged.probabilities.shape == (40, 2)
    assert learned.metrics.images == 40
    want = evaluate(
        made.targets[learned.judged.rows], learned.judged.probabilities, made.labels, folds=FOLDS
    )
    assert (learned.metrics.accuracy, learned.metrics.ece) == (want.accuracy, want.ece)
    without = make(
        made.embeddings[~seen],
        made.digests[~seen],
        made.fingerprints[~seen],
        [made.labels[target] for target in made.targets[~seen]],
    )
    assert not same(learned, learn(without, seed=0))


def test_a_class_that_was_seen_whole_is_learnt() -> None:
    """It is answered though nothing is known of how well."""
    made = garden({"amber": 30, "blue": 30, "green": 30}, apart=3.0)
    learned = learn(replace(made, seen=made.targets == 2), seed=0)
    new = garden({"amber": 30, "blue": 30, "green": 30}, seed=1, apart=3.0)
    called = learned.head.probabilities(new.embeddings).argmax(axis=1)
    assert (called == new.targets).mean() > 0.95
    assert learned.metrics.per_label[2].images == 0


def test_nothing_to_judge_by_is_said() -> None:
    """If the backbone was tuned on every image, no number would be honest: refused."""
    made = garden({"amber": 10, "blue": 10})
    with pytest.raises(NotReady, match="fine-tuned on all 20 images; keep some"):
        learn(replace(made, seen=np.ones(20, dtype=bool)), seed=0)


# Large sets


def test_normalisations_are_compared_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many exemplars so many a label are looked at; the head is learnt from all."""
    monkeypatch.setattr(choosing, "SCREENED_FROM", 30)
    monkeypatch.setattr(choosing, "SCREENED_PER_LABEL", 10)
    looked: list[int] = []
    trials = Judge.trials

    def watched(judge: Judge, *arguments: Any) -> list[Trial]:
        looked.append(len(judge.folds))
        return trials(judge, *arguments)

    monkeypatch.setattr(Judge, "trials", watched)
    learned = learn(garden(dict.fromkeys(LABELS, 40)), seed=0, recipe=Recipe(head="ridge"))
    assert looked == [50, 50, 50, 200]
    assert learned.metrics.images == 200


@pytest.mark.parametrize(("numbers", "tried"), [(300, True), (299, False)])
def test_auto_does_without_logistic_regression_for_many_numbers(
    numbers: int, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to LOGISTIC_NUMBERS it is tried; beyond, closed forms choose the normalisation, too."""
    monkeypatch.setattr(choosing, "LOGISTIC_NUMBERS", numbers)
    learned = learn(garden(dict.fromkeys(LABELS, 12)), seed=0)
    assert ("logistic" in {one.head for one in learned.metrics.candidates}) == tried
    assert {"ridge", "nearest_mean"} <= {one.head for one in learned.metrics.candidates}


def test_a_recipe_may_ask_for_logistic_regression_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bound is for ``auto`` only."""
    monkeypatch.setattr(choosing, "LOGISTIC_NUMBERS", 1)
    recipe = Recipe(head="logistic")
    assert learn(garden(dict.fromkeys(LABELS, 12)), seed=0, recipe=recipe).kind == "logistic"


@pytest.mark.parametrize("kind", ["ridge", "nearest_mean"])
def test_blocks_change_no_head(kind: HeadKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked on in blocks of a few rows, the head is the same but for rounding."""
    made = garden(dict.fromkeys(LABELS, 30))
    recipe = Recipe(head=kind)
    want = learn(made, seed=0, recipe=recipe)
    for part in (task, ridge, judging, calibration):
        monkeypatch.setattr(part, "_ROWS", 7)
    monkeypatch.setattr(task, "_BLOCK", 999)
    found = learn(made, seed=0, recipe=recipe)
    assert (found.kind, found.strength) == (want.kind, want.strength)
    np.testing.assert_allclose(
        found.head.probabilities(made.embeddings),
        want.head.probabilities(made.embeddings),
        atol=1e-5,
    )


# Odd sets


def many(classes: int, each: int = 6) -> Exemplars:
    """Return exemplars of any number of classes, far apart."""
    rng = np.random.default_rng(0)
    targets = np.arange(classes * each) % classes
    embeddings = 4 * rng.normal(size=(classes, WIDTH))[targets] + rng.normal(
        size=(len(targets), WIDTH)
    )
    prints = rng.integers(0, 256, (2, len(targets), 32), dtype=np.uint8)
    return make(
        embeddings.astype(np.float32), prints[0], prints[1], [f"c{one:02}" for one in targets]
    )


@pytest.mark.parametrize("classes", [1, 2, 3, 12, 60])
def test_any_number_of_classes_is_learnt(classes: int) -> None:
    """One class or sixty: the head tells them apart, and its metrics survive their file."""
    made = many(classes)
    learned = learn(made, seed=0)
    found = learned.head.probabilities(made.embeddings)
    assert found.shape == (6 * classes, classes)
    assert (found.argmax(axis=1) == made.targets).mean() > 0.98
    assert from_json(to_json(learned.metrics), Metrics, name="metrics.json") == learned.metrics


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ALL_NORMALISATIONS)
@pytest.mark.parametrize("value", [0.0, 0.37])
def test_equal_embeddings_are_no_trouble(
    kind: HeadKind, normalisation: Normalisation, value: float
) -> None:
    """A backbone that says nothing of any image leaves all classes as probable, and no error."""
    made = garden(dict.fromkeys(LABELS[:3], 6))
    made = replace(made, embeddings=np.full_like(made.embeddings, value))
    learned = learn(made, seed=0, recipe=Recipe(head=kind, normalisation=normalisation))
    found = learned.head.probabilities(made.embeddings)
    np.testing.assert_allclose(found, 1 / 3, atol=0.1)
    assert np.isfinite(learned.metrics.log_loss)
    to_onnx(learned.head)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e12])
def test_the_scale_of_embeddings_does_not_matter(scale: float) -> None:
    """Embeddings that are all a million times as large give the same answers."""
    made = garden(dict.fromkeys(LABELS, 12))
    want = learn(made, seed=0).head.probabilities(made.embeddings)
    scaled = replace(made, embeddings=made.embeddings * np.float32(scale))
    found = learn(scaled, seed=0).head.probabilities(scaled.embeddings)
    np.testing.assert_allclose(found, want, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
def test_a_broken_embedding_is_refused(value: float) -> None:
    """Nothing is learnt from what is no number; the message names the image and its label."""
    made = garden({"amber": 10, "blue": 10})
    names = tuple(f"{row}.jpg" for row in range(20))
    made = replace(made, embeddings=made.embeddings.copy(), names=names)
    made.embeddings[3, 1] = value
    label = made.labels[made.targets[3]]
    with pytest.raises(Corrupt, match=rf"^1 of 20 embeddings .* first that of '3.jpg' \({label}\)"):
        learn(made, seed=0)
