"""Quality gate: paired comparison with the parent, and rejection of proven losses."""

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
    """Image with a revision's prediction."""

    image: str
    label: str
    called: str
    seen: bool = False


def exemplars(answers: Sequence[Answer]) -> Exemplars:
    """Return the exemplars of the images; their names are the predicted labels."""
    digests = b"".join(hashlib.sha256(answer.image.encode()).digest() for answer in answers)
    rows = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    return make(
        np.zeros((len(answers), 1), dtype=np.float32),
        rows,
        rows,
        [answer.label for answer in answers],
        seen=np.array([answer.seen for answer in answers], dtype=bool),
        names=[answer.called for answer in answers],
    )


def metrics(judged: Exemplars) -> Metrics:
    """Return the metrics of exemplars whose names are the predicted labels."""
    evaluated = np.flatnonzero(~judged.seen)
    called = [judged.labels.index(judged.names[row]) for row in evaluated]
    answers = np.eye(len(judged.labels))[called]
    return evaluate(judged.targets[evaluated], answers, judged.labels, folds=FOLDS)


def judgement(answers: Sequence[Answer]) -> Judgement:
    """Return the judgement of the images."""
    judged = exemplars(answers)
    return Judgement.of(judged, metrics(judged))


def answers(label: str, right: int, wrong: int = 0, called: str = "") -> list[Answer]:
    """Return images of a label, of which the first ``right`` are predicted correctly."""
    return [
        Answer(image=f"{label} {index}", label=label, called=label if index < right else called)
        for index in range(right + wrong)
    ]


def compared(
    before: Sequence[Answer], after: Sequence[Answer], *, taught: str | None = None, more: str = ""
) -> Comparison:
    """Compare two revisions without renamed labels."""
    labels = [*([] if taught is None else [taught]), *more]
    return compare(judgement(before), judgement(after), taught=labels)


def test_compare_counts_lost_and_gained_images() -> None:
    """If two images swap, the recall is unchanged, with one lost and one gained."""
    old = answers("b", 4)
    before = [*answers("a", 3, 1, "b"), *old]
    after = [replace(answer, called="b" if answer.image == "a 0" else "a") for answer in before[:4]]
    found = compared(before, [*after, *old])
    assert found.labels == (
        LabelChange(label="a", images=4, recall_before=0.75, recall_after=0.75, lost=1, gained=1),
        LabelChange(label="b", images=4, recall_before=1, recall_after=1, lost=0, gained=0),
    )
    assert (found.images, found.drop) == (8, 0)
    assert found.drop_low < 0 < found.drop_high


def test_accuracy_is_the_mean_of_recalls() -> None:
    """Labels have equal weight, whatever their number of images."""
    before = [*answers("a", 2), *answers("b", 98)]
    after = [*answers("a", 1, 1, "b"), *answers("b", 98)]
    found = compared(before, after)
    assert (found.accuracy_before, found.accuracy_after, found.drop) == (1, 0.75, 0.25)


def test_compare_uses_common_images_only() -> None:
    """New, removed and relabelled images are left out."""
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
    assert [(change.label, change.images) for change in found.labels] == [("a", 3), ("b", 2)]
    assert found.images == 5


def test_compare_ignores_images_seen_by_fine_tuning() -> None:
    """Images that either revision did not evaluate are left out."""
    both = [*answers("a", 3, 2, "b"), *answers("b", 4, 1, "a")]
    before = [replace(answer, seen=answer.image == "a 4") for answer in both]
    after = [replace(answer, seen=answer.image == "b 0") for answer in both]
    found = compared(before, after)
    assert [(answer.label, answer.images, answer.recall_before) for answer in found.labels] == [
        ("a", 4, 0.75),
        ("b", 4, 0.75),
    ]
    assert found.drop == 0


def test_a_renamed_label_is_compared_with_itself() -> None:
    """Its images are compared under the new name, also if the order of labels changes."""
    before = [*answers("a", 3, 1, "b"), *answers("b", 4)]
    name = {"a": "z", "b": "b"}
    after = [
        replace(answer, label=name[answer.label], called=name[answer.called]) for answer in before
    ]
    found = compare(judgement(before), judgement(after), renamed={"a": "z"})
    assert [(change.label, change.recall_before) for change in found.labels] == [
        ("b", 1),
        ("z", 0.75),
    ]
    assert (found.images, found.drop) == (8, 0)


def test_no_common_images_give_no_rejection() -> None:
    """Without common images the interval is -1 to 1 and nothing is rejected."""
    found = compared([*answers("a", 2), *answers("b", 2)], [*answers("c", 2), *answers("d", 2)])
    assert (found.images, found.labels, found.drop) == (0, (), 0)
    assert (found.drop_low, found.drop_high) == (-1, 1)
    assert check(found, Gate(max_old_class_drop=0)) == ()


def test_added_label_has_its_recall_with_interval() -> None:
    """All of its evaluated images are used, with the Wilson interval."""
    old = [*answers("a", 9), *answers("b", 9)]
    found = compared(old, [*old, *answers("c", 7, 3, "a")], taught="c")
    assert found.taught is not None
    assert (found.taught.label, found.taught.images, found.taught.recall) == ("c", 10, 0.7)
    assert (found.taught.low, found.taught.high) == wilson_interval(7, 10)


def test_comparison_has_both_calibration_errors() -> None:
    """The calibration errors are those of the two revisions' metrics."""
    before, after = [*answers("a", 9, 1, "b"), *answers("b", 9)], answers("a", 5, 5, "b")
    found = compared(before, [*after, *answers("b", 9)])
    assert found.ece_before == pytest.approx(1 / 19)
    assert found.ece_after == pytest.approx(5 / 19)


def test_comparison_has_the_worst_confusions() -> None:
    """At most ten pairs are listed, by share of the label, then by images."""
    many = [
        answer for index in range(12) for answer in answers(f"l{index:02}", index, 12 - index, "z")
    ]
    all_answers = [*many, *answers("z", 1)]
    found = compared(all_answers, all_answers).confusions
    assert len(found) == CONFUSIONS
    assert [pair.label for pair in found[:3]] == ["l00", "l01", "l02"]
    assert (found[1].called, found[1].images, found[1].share) == ("z", 11, 11 / 12)


def test_comparison_includes_confusions_of_the_added_label() -> None:
    """Pairs of the added label are listed even if many other pairs are worse."""
    bad = [answer for index in range(12) for answer in answers(f"l{index:02}", 1, 9, "z")]
    bad += answers("z", 9)
    taught = answers("new", 18, 2, "z")
    found = compared(bad, [*bad, *taught], taught="new").confusions
    assert len(found) == CONFUSIONS
    assert [(pair.label, pair.called) for pair in found][-1] == ("new", "z")


def test_drop_that_is_not_significant_passes() -> None:
    """A drop above the limit passes if chance can explain it."""
    before = [*answers("a", 10), *answers("b", 10)]
    after = [*answers("a", 9, 1, "b"), *answers("b", 10)]
    found = compared(before, after)
    assert found.drop == pytest.approx(0.05)
    assert check(found, Gate(max_old_class_drop=0.02)) == ()


def test_drop_not_significantly_above_the_limit_passes() -> None:
    """A significant drop passes if it may be below the limit."""
    before = [*answers("a", 400), *answers("b", 400)]
    after = [*answers("a", 376, 24, "b"), *answers("b", 400)]
    found = compared(before, after)
    assert 0 < found.drop_low < 0.02 < found.drop
    assert check(found, Gate(max_old_class_drop=0.02)) == ()
    assert len(check(found, Gate(max_old_class_drop=0.01))) == 1


def test_message_of_a_drop_has_the_numbers() -> None:
    """The message has the drop, its interval, the limit, the labels and confused pairs."""
    before = [*answers("a", 50), *answers("b", 50)]
    after = [*answers("a", 30, 20, "b"), *answers("b", 49, 1, "a")]
    (failure,) = check(compared(before, after), Gate())
    assert failure == (
        "accuracy on the 2 old labels dropped by 21.0 points, from 100.0 to 79.0 % (95 % interval "
        "of the drop 13.6 to 28.4; the limit is 2.0). Largest drops of recall: 'a' 100.0 to 60.0 % "
        "of 50 images, 'b' 100.0 to 98.0 % of 50 images. Most confused: 'a' predicted as 'b' 20 "
        "times (40.0 %), 'b' predicted as 'a' 1 time (2.0 %)"
    )


def test_message_of_a_low_recall_has_the_numbers() -> None:
    """The message has the recall, its interval, the minimum and confused pairs."""
    old = [*answers("a", 90), *answers("b", 90)]
    found = compared(old, [*old, *answers("c", 3, 13, "b")], taught="c")
    (failure,) = check(found, Gate())
    assert failure == (
        "the recall of 'c' is 18.8 % on 16 images (95 % interval 6.6 to 43.0 %; the minimum is "
        "60.0). Most confused: 'c' predicted as 'b' 13 times (81.2 %)"
    )


def test_few_images_rarely_cause_a_rejection() -> None:
    """2 of 5 correct images may be a good class; 0 of 5 is rejected."""
    old = [*answers("a", 5), *answers("b", 5)]
    two, none = (
        compared(old, [*old, *answers("c", right, 5 - right, "a")], taught="c") for right in (2, 0)
    )
    assert check(two, Gate()) == ()
    assert len(check(none, Gate())) == 1


def test_low_recall_of_the_parent_is_the_minimum() -> None:
    """A class with a low recall before must not get worse, and need not get better."""
    other = answers("b", 99)
    before = [*answers("a", 40, 60, "b"), *other]
    more = [Answer(image=f"more {index}", label="a", called="b") for index in range(200)]
    same = compared(before, [*answers("a", 43, 57, "b"), *other], taught="a")
    worse = compared(before, [*answers("a", 43, 57, "b"), *other, *more], taught="a")
    assert check(same, Gate()) == ()
    assert ["the minimum is 40.0" in failure for failure in check(worse, Gate())] == [True]


def test_gate_without_limits_passes_everything() -> None:
    """Limits of 1 and 0 reject nothing."""
    old = [*answers("a", 90), *answers("b", 90)]
    after = [*answers("a", 0, 90, "c"), *answers("b", 0, 90, "c"), *answers("c", 0, 90, "a")]
    found = compared(old, after, taught="c")
    assert len(check(found, Gate())) == 2
    assert check(found, Gate(max_old_class_drop=1, min_new_class_recall=0)) == ()


@pytest.mark.slow
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
    """The judgement does not depend on order or number of shards, copies or seen images."""
    all_answers = [Answer(image=str(a), label=b, called=c, seen=d) for a, b, c, d in rows]
    all_answers += [Answer(image=label, label=label, called="a") for label in "abc"]
    shards = [shard for answer in all_answers for shard in split(exemplars([answer]))]
    merged = merge(shards)
    merged_metrics = metrics(merged)
    whole, parts = (
        Judgement.of(merged, merged_metrics),
        Judgement.of_shards(reversed(shards), merged_metrics),
    )
    for name in ("digests", "targets", "right"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert whole.labels == parts.labels == ("a", "b", "c")


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_comparison_matches_brute_force(seed: int, labels: int) -> None:
    """Recalls of common images match those from a dictionary of images."""
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
        return list({(answer.image, answer.label): answer for answer in (*own, *drawn)}.values())

    before, after = revision(), revision()
    answers_before = {(answer.image, answer.label): answer for answer in before if not answer.seen}
    both = [
        (answers_before[answer.image, answer.label], answer)
        for answer in after
        if not answer.seen and (answer.image, answer.label) in answers_before
    ]
    found = compared(before, after)
    assert found.images == len(both)
    for change in found.labels:
        own = [pair for pair in both if pair[1].label == change.label]
        right = [[answer.called == answer.label for answer in pair] for pair in own]
        assert change.images == len(own)
        assert change.lost == sum(a and not b for a, b in right)
        assert change.gained == sum(b and not a for a, b in right)
        assert change.recall_before == pytest.approx(sum(a for a, _ in right) / len(own))
        assert change.recall_after == pytest.approx(sum(b for _, b in right) / len(own))


def test_judgement_matches_the_learnt_predictions() -> None:
    """The metrics of a learnt head match its exemplars without seen ones."""
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


@pytest.mark.parametrize("evaluated", [17, 15])
def test_metrics_of_other_exemplars_are_corrupt(evaluated: int) -> None:
    """Metrics that cannot be those of the exemplars are Corrupt."""
    merged_metrics = metrics(exemplars([*answers("a", 8), *answers("b", 8)]))
    with pytest.raises(
        Corrupt, match=f"metrics are of 16 images, 2 bytes of bits; .* is {evaluated}"
    ):
        Judgement.of(exemplars([*answers("a", 8), *answers("b", evaluated - 8)]), merged_metrics)


def test_metrics_without_bits_are_corrupt() -> None:
    """Metrics without the bits of correct images are Corrupt."""
    judged = exemplars([*answers("a", 8), *answers("b", 8)])
    with pytest.raises(Corrupt, match="0 bytes of bits"):
        Judgement.of(judged, replace(metrics(judged), right=b""))


def test_a_shard_of_an_unknown_label_is_corrupt() -> None:
    """The error has the label that the metrics lack."""
    judged = exemplars([*answers("a", 8), *answers("b", 8)])
    shards = [("c", split(judged)[0][1])]
    with pytest.raises(Corrupt, match=r"not have the labels \['c'\]"):
        Judgement.of_shards(shards, metrics(judged))
