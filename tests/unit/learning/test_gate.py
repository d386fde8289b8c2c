"""A candidate is compared with its parent image by image, and rejected for what is proven."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.bundle.comparison import Comparison, Gate, LabelChange
from topwork.bundle.exemplars import FOLDS, Exemplars, make, merge, split
from topwork.bundle.metrics import Metrics, evaluate, wilson_interval
from topwork.errors import Corrupt
from topwork.learning.gate import CONFUSIONS, Judgement, check, compare
from topwork.learning.learn import learn


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An image and what a revision calls it."""

    image: str
    label: str
    called: str
    seen: bool = False


def exemplars(answers: Sequence[Answer]) -> Exemplars:
    """Return the exemplars of those images; their names say what they are called."""
    digests = b"".join(hashlib.sha256(one.image.encode()).digest() for one in answers)
    rows = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    return make(
        np.zeros((len(answers), 1), dtype=np.float32),
        rows,
        rows,
        [one.label for one in answers],
        seen=np.array([one.seen for one in answers], dtype=bool),
        names=[one.called for one in answers],
    )


def metrics(judged: Exemplars) -> Metrics:
    """Return what is said of exemplars whose names say what they are called."""
    kept = np.flatnonzero(~judged.seen)
    called = [judged.labels.index(judged.names[row]) for row in kept]
    answers = np.eye(len(judged.labels))[called]
    return evaluate(judged.targets[kept], answers, judged.labels, folds=FOLDS)


def judgement(answers: Sequence[Answer]) -> Judgement:
    """Return how those images were judged."""
    judged = exemplars(answers)
    return Judgement.of(judged, metrics(judged))


def answers(label: str, right: int, wrong: int = 0, called: str = "") -> list[Answer]:
    """Return the images of a label, of which the first are called right."""
    return [
        Answer(image=f"{label} {index}", label=label, called=label if index < right else called)
        for index in range(right + wrong)
    ]


def compared(
    before: Sequence[Answer], after: Sequence[Answer], *, taught: str | None = None
) -> Comparison:
    """Compare two revisions, no label being renamed."""
    return compare(judgement(before), judgement(after), taught=taught)


def test_what_was_lost_and_gained_is_counted_image_by_image() -> None:
    """Two images swapped places: the recall stays, but one was lost and one gained."""
    old = answers("b", 4)
    before = [*answers("a", 3, 1, "b"), *old]
    after = [replace(one, called="b" if one.image == "a 0" else "a") for one in before[:4]]
    found = compared(before, [*after, *old])
    assert found.labels == (
        LabelChange(label="a", images=4, recall_before=0.75, recall_after=0.75, lost=1, gained=1),
        LabelChange(label="b", images=4, recall_before=1, recall_after=1, lost=0, gained=0),
    )
    assert (found.images, found.drop) == (8, 0)
    assert found.drop_low < 0 < found.drop_high


def test_labels_count_alike() -> None:
    """The accuracy is the mean of the recalls, however many images a label has."""
    before = [*answers("a", 2), *answers("b", 98)]
    after = [*answers("a", 1, 1, "b"), *answers("b", 98)]
    found = compared(before, after)
    assert (found.accuracy_before, found.accuracy_after, found.drop) == (1, 0.75, 0.25)


def test_only_images_of_both_count() -> None:
    """New images, images that went, and those that bear another label now are left out."""
    old = answers("a", 4)
    before = [*old, Answer(image="moved", label="a", called="b"), *answers("b", 2)]
    after = [
        *old[:3],
        Answer(image="new", label="a", called="b"),
        Answer(image="moved", label="b", called="b"),
        *answers("b", 2),
        *answers("c", 2),
    ]
    found = compared(before, after, taught="c")
    assert [(one.label, one.images) for one in found.labels] == [("a", 3), ("b", 2)]
    assert found.images == 5


def test_what_fine_tuning_saw_does_not_count() -> None:
    """Images that one of the two never judged are left out, and do not shift the others."""
    both = [*answers("a", 3, 2, "b"), *answers("b", 4, 1, "a")]
    before = [replace(one, seen=one.image == "a 4") for one in both]
    after = [replace(one, seen=one.image == "b 0") for one in both]
    found = compared(before, after)
    assert [(one.label, one.images, one.recall_before) for one in found.labels] == [
        ("a", 4, 0.75),
        ("b", 4, 0.75),
    ]
    assert found.drop == 0


def test_a_renamed_label_is_compared_with_itself() -> None:
    """Its images count under the new name, even where that sorts elsewhere."""
    before = [*answers("a", 3, 1, "b"), *answers("b", 4)]
    name = {"a": "z", "b": "b"}
    after = [replace(one, label=name[one.label], called=name[one.called]) for one in before]
    found = compare(judgement(before), judgement(after), taught=None, renamed={"a": "z"})
    assert [(one.label, one.recall_before) for one in found.labels] == [("b", 1), ("z", 0.75)]
    assert (found.images, found.drop) == (8, 0)


def test_nothing_in_common_is_no_proof() -> None:
    """Where no image was judged by both, anything is possible and nothing is rejected."""
    found = compared([*answers("a", 2), *answers("b", 2)], [*answers("c", 2), *answers("d", 2)])
    assert (found.images, found.labels, found.drop) == (0, (), 0)
    assert (found.drop_low, found.drop_high) == (-1, 1)
    assert check(found, Gate(max_old_class_drop=0)) == ()


def test_the_taught_label_has_its_recall_with_interval() -> None:
    """All of its judged images count, with the Wilson interval."""
    old = [*answers("a", 9), *answers("b", 9)]
    found = compared(old, [*old, *answers("c", 7, 3, "a")], taught="c")
    assert found.taught is not None
    assert (found.taught.label, found.taught.images, found.taught.recall) == ("c", 10, 0.7)
    assert (found.taught.low, found.taught.high) == wilson_interval(7, 10)


def test_calibration_of_both_is_told() -> None:
    """The calibration errors are those of the two revisions' metrics."""
    before, after = [*answers("a", 9, 1, "b"), *answers("b", 9)], answers("a", 5, 5, "b")
    found = compared(before, [*after, *answers("b", 9)])
    assert found.ece_before == pytest.approx(1 / 19)
    assert found.ece_after == pytest.approx(5 / 19)


def test_the_worst_confusions_are_told() -> None:
    """At most ten pairs, the largest share of a label first, more images before fewer."""
    many = [one for index in range(12) for one in answers(f"l{index:02}", index, 12 - index, "z")]
    every = [*many, *answers("z", 1)]
    found = compared(every, every).confusions
    assert len(found) == CONFUSIONS
    assert [one.label for one in found[:3]] == ["l00", "l01", "l02"]
    assert (found[1].called, found[1].images, found[1].share) == ("z", 11, 11 / 12)


def test_the_taught_label_s_confusions_are_always_told() -> None:
    """However many other pairs are worse, those of the taught label are there, in their place."""
    bad = [one for index in range(12) for one in answers(f"l{index:02}", 1, 9, "z")]
    bad += answers("z", 9)
    taught = answers("new", 18, 2, "z")
    found = compared(bad, [*bad, *taught], taught="new").confusions
    assert len(found) == CONFUSIONS
    assert [(one.label, one.called) for one in found][-1] == ("new", "z")


def test_a_drop_within_its_interval_passes() -> None:
    """A drop above the limit is let through where chance explains it."""
    before = [*answers("a", 10), *answers("b", 10)]
    after = [*answers("a", 9, 1, "b"), *answers("b", 10)]
    found = compared(before, after)
    assert found.drop == pytest.approx(0.05)
    assert check(found, Gate(max_old_class_drop=0.02)) == ()


def test_a_drop_that_may_be_within_the_limit_passes() -> None:
    """A drop that is surely one, but not surely above the limit, is let through."""
    before = [*answers("a", 400), *answers("b", 400)]
    after = [*answers("a", 376, 24, "b"), *answers("b", 400)]
    found = compared(before, after)
    assert 0 < found.drop_low < 0.02 < found.drop
    assert check(found, Gate(max_old_class_drop=0.02)) == ()
    assert len(check(found, Gate(max_old_class_drop=0.01))) == 1


def test_a_proven_drop_is_told_with_its_numbers() -> None:
    """The sentence has the drop, its interval, the limit, the label and the confused pair."""
    before = [*answers("a", 50), *answers("b", 50)]
    after = [*answers("a", 30, 20, "b"), *answers("b", 49, 1, "a")]
    (failure,) = check(compared(before, after), Gate())
    assert failure == (
        "accuracy on the 2 labels of before fell by 21.0 points, from 100.0 to 79.0 % (95 % "
        "interval of the drop 13.6 to 28.4, at most 2.0 may be lost). Most of all: 'a' 100.0 to "
        "60.0 % of 50 images, 'b' 100.0 to 98.0 % of 50 images. Most confused: 'a' called 'b' 20 "
        "times (40.0 %), 'b' called 'a' 1 time (2.0 %)"
    )


def test_a_class_that_is_not_learnt_is_told_with_its_numbers() -> None:
    """The sentence has the recall, its interval, the limit and what the class is taken for."""
    old = [*answers("a", 90), *answers("b", 90)]
    found = compared(old, [*old, *answers("c", 3, 13, "b")], taught="c")
    (failure,) = check(found, Gate())
    assert failure == (
        "'c' is called so for 18.8 % of its 16 images (95 % interval 6.6 to 43.0 %, at least 60.0 "
        "are asked for). Most confused: 'c' called 'b' 13 times (81.2 %)"
    )


def test_few_images_prove_little() -> None:
    """Two right of five may be a good class; none of five is not."""
    old = [*answers("a", 5), *answers("b", 5)]
    two, none = (
        compared(old, [*old, *answers("c", right, 5 - right, "a")], taught="c") for right in (2, 0)
    )
    assert check(two, Gate()) == ()
    assert len(check(none, Gate())) == 1


def test_a_hard_class_may_get_more_images() -> None:
    """A class that was hard before need not become easy; it may not become harder."""
    other = answers("b", 99)
    before = [*answers("a", 40, 60, "b"), *other]
    more = [Answer(image=f"more {index}", label="a", called="b") for index in range(200)]
    same = compared(before, [*answers("a", 43, 57, "b"), *other], taught="a")
    worse = compared(before, [*answers("a", 43, 57, "b"), *other, *more], taught="a")
    assert check(same, Gate()) == ()
    assert ["at least 40.0 are asked for" in one for one in check(worse, Gate())] == [True]


def test_a_gate_may_let_everything_through() -> None:
    """With limits of 1 and 0 nothing is rejected."""
    old = [*answers("a", 90), *answers("b", 90)]
    after = [*answers("a", 0, 90, "c"), *answers("b", 0, 90, "c"), *answers("c", 0, 90, "a")]
    found = compared(old, after, taught="c")
    assert len(check(found, Gate())) == 2
    assert check(found, Gate(max_old_class_drop=1, min_new_class_recall=0)) == ()


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from("abc"), st.sampled_from("abc"), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_shards_give_the_judgement_of_their_exemplars(
    rows: list[tuple[int, str, str, bool]],
) -> None:
    """In any order and number of shards, with copies, shared pixels and seen images."""
    every = [Answer(image=str(a), label=b, called=c, seen=d) for a, b, c, d in rows]
    every += [Answer(image=one, label=one, called="a") for one in "abc"]
    shards = [shard for one in every for shard in split(exemplars([one]))]
    merged = merge(shards)
    said = metrics(merged)
    whole, parts = Judgement.of(merged, said), Judgement.of_shards(reversed(shards), said)
    for name in ("digests", "targets", "right"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert whole.labels == parts.labels == ("a", "b", "c")


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_a_comparison_agrees_with_one_by_hand(seed: int, labels: int) -> None:
    """Recalls of common images are those that a dictionary of images gives."""
    rng = np.random.default_rng(seed)
    names = [f"l{index}" for index in range(labels)]

    def revision() -> list[Answer]:
        own = [Answer(image=name, label=name, called=rng.choice(names)) for name in names]
        drawn = [
            Answer(
                image=str(rng.integers(60)),
                label=rng.choice(names),
                called=rng.choice(names),
                seen=bool(rng.random() < 0.1),
            )
            for _ in range(50)
        ]
        return list({(one.image, one.label): one for one in (*own, *drawn)}.values())

    before, after = revision(), revision()
    was = {(one.image, one.label): one for one in before if not one.seen}
    both = [
        (was[one.image, one.label], one)
        for one in after
        if not one.seen and (one.image, one.label) in was
    ]
    found = compared(before, after)
    assert found.images == len(both)
    for change in found.labels:
        own = [pair for pair in both if pair[1].label == change.label]
        right = [[one.called == one.label for one in pair] for pair in own]
        assert change.images == len(own)
        assert change.lost == sum(a and not b for a, b in right)
        assert change.gained == sum(b and not a for a, b in right)
        assert change.recall_before == pytest.approx(sum(a for a, _ in right) / len(own))
        assert change.recall_after == pytest.approx(sum(b for _, b in right) / len(own))


def test_learning_says_what_it_judged() -> None:
    """The metrics of a learnt head fit its exemplars, seen ones left out."""
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    learnt = make(
        (np.eye(3)[targets] + rng.normal(0, 0.4, (60, 3))).astype(np.float32),
        rng.integers(0, 256, (60, 32), dtype=np.uint8),
        rng.integers(0, 256, (60, 32), dtype=np.uint8),
        ["abc"[target] for target in targets],
        seen=rng.random(60) < 0.2,
    )
    found = learn(learnt, seed=0)
    made = Judgement.of(learnt, found.metrics)
    called = found.judged.probabilities.argmax(axis=1)
    assert np.array_equal(made.digests, learnt.digests[found.judged.rows])
    assert np.array_equal(made.right, called == learnt.targets[found.judged.rows])


@pytest.mark.parametrize("kept", [17, 15])
def test_metrics_of_other_exemplars_are_corrupt(kept: int) -> None:
    """Bits that cannot be those of the exemplars are refused, not compared."""
    said = metrics(exemplars([*answers("a", 8), *answers("b", 8)]))
    with pytest.raises(Corrupt, match=f"metrics judge 16 images, 2 bytes of bits; .* are {kept}"):
        Judgement.of(exemplars([*answers("a", 8), *answers("b", kept - 8)]), said)


def test_metrics_without_bits_are_corrupt() -> None:
    """Metrics that do not say which images were right cannot be compared."""
    judged = exemplars([*answers("a", 8), *answers("b", 8)])
    with pytest.raises(Corrupt, match="0 bytes of bits"):
        Judgement.of(judged, replace(metrics(judged), right=b""))


def test_a_shard_of_an_unknown_label_is_corrupt() -> None:
    """A label that the metrics do not have is named."""
    judged = exemplars([*answers("a", 8), *answers("b", 8)])
    shards = [("c", split(judged)[0][1])]
    with pytest.raises(Corrupt, match=r"nothing of the labels \['c'\]"):
        Judgement.of_shards(shards, metrics(judged))
