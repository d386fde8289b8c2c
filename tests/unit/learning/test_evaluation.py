"""Evaluation of answers to labelled photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.learning.evaluation import (
    SUBGROUP_VALUES,
    Answers,
    compare_answers,
    evaluate_answers,
    lacking_labels,
    subgroup_columns,
)


def photos(labels: str, *columns: tuple[str, Sequence[str]]) -> list[Photo]:
    """Return a photo for each letter, its label; a hyphen is none. Columns have a value each."""
    return [
        Photo(
            name=f"{number}.jpg",
            label=label.replace("-", ""),
            read=bytes,
            columns=tuple((name, values[number]) for name, values in columns),
        )
        for number, label in enumerate(labels)
    ]


def answers(
    called: str, *, labels: str = "ab", unknown: Sequence[float] | None = None, revision: int = 1
) -> Answers:
    """Return answers with a probability of 0.8 for each called label; unknown from 0.5 on."""
    rest = 0.2 / (len(labels) - 1)
    scores = None if unknown is None else np.array(unknown, dtype=np.float32)
    return Answers(
        revision=revision,
        labels=tuple(labels),
        probabilities=np.array(
            [[0.8 if label == name else rest for label in labels] for name in called],
            dtype=np.float32,
        ),
        unknown=scores,
        is_unknown=None if scores is None else scores >= 0.5,
    )


def test_photos_of_other_labels_count_as_unknown_images() -> None:
    """They change neither accuracy nor confusion; strangers without a label are like them."""
    found = evaluate_answers(
        photos("aabbc-"), answers("aabaab", unknown=[0.1, 0.6, 0.2, 0.3, 0.9, 0.25])
    )
    assert found.metrics.images == 4
    assert found.metrics.accuracy == 0.75
    assert found.metrics.confusion == ((2, 0), (1, 1))
    assert found.unknown is not None
    assert (found.unknown.known, found.unknown.false_rejects) == (4, 1)
    assert (found.unknown.strangers, found.unknown.detected) == (2, 1)
    assert found.unknown.auroc == pytest.approx((4 + 2) / 8)


def test_without_strangers_there_is_no_auroc() -> None:
    """False rejects are counted all the same."""
    found = evaluate_answers(photos("ab"), answers("ab", unknown=[0.7, 0.1])).unknown
    assert found is not None
    assert (found.false_rejects, found.strangers, found.auroc) == (1, 0, None)


def test_a_head_without_detection_has_no_unknown_metrics() -> None:
    """Its photos of other labels are left out of all metrics."""
    found = evaluate_answers(photos("abc"), answers("aba"))
    assert (found.unknown, found.metrics.images) == (None, 2)


def test_photos_without_a_known_label_are_refused() -> None:
    """The message has both sides' labels."""
    with pytest.raises(InvalidInput, match=r"whose labels are a, b; the labels .* are c, d"):
        evaluate_answers(photos("cd-"), answers("aab"))


def test_subgroups_have_their_own_accuracy() -> None:
    """An empty value is a subgroup; values are sorted, and strangers are in none."""
    asked = photos("aabbc", ("camera", ("y", "x", "x", "", "z")))
    found = evaluate_answers(asked, answers("abbba", unknown=[0.9, 0, 0, 0, 0])).subgroups
    rows = [(group.column, group.value, group.images, group.right) for group in found]
    assert rows == [("camera", "", 1, 1), ("camera", "x", 2, 1), ("camera", "y", 1, 1)]
    assert [group.false_rejects for group in found] == [0, 0, 1]
    assert found[0].ece == pytest.approx(0.2)


def test_columns_with_one_value_or_many_make_no_subgroups() -> None:
    """A column of identifiers is reported as such."""
    count = SUBGROUP_VALUES + 1
    columns = (
        ("same", ["x"] * count),
        ("id", [str(number) for number in range(count)]),
        ("half", ["x", "y"] * count),
    )
    assert subgroup_columns(photos("a" * count, *columns)) == (["half"], ["id"])


def test_comparison_is_paired_on_the_labels_of_both() -> None:
    """A label that only the later revision has is left out; so is a photo of no label."""
    asked = photos("aabbcc-")
    before = answers("abbaaaa", labels="ab")
    after = answers("aabbccc", labels="abc", revision=2)
    found = compare_answers(asked, before, after)
    assert found.images == 4
    assert (found.accuracy_before, found.accuracy_after) == (0.5, 1.0)
    assert [(row.label, row.lost, row.gained) for row in found.labels] == [
        ("a", 0, 1),
        ("b", 0, 1),
    ]


def test_lacking_labels_are_counted() -> None:
    """Strangers have no label to lack."""
    assert lacking_labels(photos("abccd--"), "ab") == {"c": 2, "d": 1}
