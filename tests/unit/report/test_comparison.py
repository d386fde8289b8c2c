"""Before and after are compared on what both know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.reports import COMPARISON, candidate, content

from topwork.bundle.comparison import drop_interval
from topwork.bundle.metrics import Metrics, evaluate
from topwork.report.comparison import SHOWN, ComparisonSection, compare
from topwork.report.content import Parent
from topwork.report.intervals import AccuracyChange


def test_a_revision_without_parent_is_compared_with_nothing() -> None:
    """There is no comparison where there is no parent."""
    assert compare(content()) is None


def test_labels_that_came_and_went_are_named() -> None:
    """Added, removed and common labels are told apart."""
    found = _compare({"a": (9, 10), "b": (9, 10)}, {"b": (9, 10), "c": (9, 10)})
    assert (found.added, found.removed, found.labels) == (("c",), ("a",), 1)


def test_accuracy_is_compared_on_common_labels() -> None:
    """Images of a label that only one revision knows do not count."""
    found = _compare({"a": (90, 100), "b": (0, 50)}, {"a": (80, 100), "c": (0, 50)})
    assert found.accuracy is not None
    assert found.accuracy.before == pytest.approx(0.9)
    assert found.accuracy.after == pytest.approx(0.8)


def test_nothing_in_common_is_no_change() -> None:
    """Revisions without a common label have no change of accuracy, not one of 0."""
    found = _compare({"a": (9, 10), "b": (9, 10)}, {"c": (9, 10), "d": (9, 10)})
    assert found.accuracy is None
    assert found.rows == ()


def test_the_largest_changes_come_first() -> None:
    """Rows are ordered by the size of the change, up or down, and counted where it is real."""
    before = {"a": (50, 100), "b": (90, 100), "c": (70, 100)}
    after = {"a": (51, 100), "b": (60, 100), "c": (95, 100)}
    found = _compare(before, after)
    assert [row.label for row in found.rows] == ["b", "c", "a"]
    assert (found.count("worse"), found.count("better")) == (1, 1)


def test_many_labels_are_folded() -> None:
    """Of very many labels those that changed most are shown; none is lost."""
    labels = {f"label {index:02}": (index, 100) for index in range(60)}
    found = _compare(labels, dict.fromkeys(labels, (50, 100)))
    assert len(found.rows) == SHOWN
    assert {row.label for row in (*found.rows, *found.folded)} == set(labels)


def test_a_candidate_is_compared_image_by_image() -> None:
    """What the manifest says is shown, its paired intervals turned from drops into changes."""
    found = compare(candidate(content()))
    assert found is not None
    assert found.accuracy == AccuracyChange(before=0.95, after=0.9, low=-0.08, high=-0.02)
    assert (found.revision, found.paired, found.labels, found.ece_before) == (1, 60, 2, 0.01)
    assert [one.label for one in found.changes] == ["rose", "daisy"]
    low, high = drop_interval([COMPARISON.labels[1]])
    assert (found.changes[0].recall.low, found.changes[0].recall.high) == (-high, -low)
    assert (found.taught, found.confusions) == (COMPARISON.taught, COMPARISON.confusions)


def test_only_the_parent_counts_as_before() -> None:
    """Where another revision serves by now, its metrics are not taken for the parent's."""
    made = candidate(content())
    assert made.parent is not None
    other = replace(made.parent, manifest=replace(made.parent.manifest, revision=7))
    with_parent, without = compare(made), compare(replace(made, parent=other))
    assert with_parent is not None
    assert without is not None
    assert (with_parent.added, without.added) == (("tulip",), ())
    assert with_parent.before is not None
    assert (without.before, without.revision) == (None, 1)


def test_a_renamed_label_neither_came_nor_went() -> None:
    """RenameClass shows the old name and the new one."""
    made = candidate(content(("a", "b")))
    assert made.parent is not None
    parent = replace(made.parent, manifest=replace(made.parent.manifest, labels=("a", "c")))
    manifest = replace(made.manifest, change="rename_class")
    found = compare(replace(made, manifest=manifest, parent=parent))
    assert found is not None
    assert (found.renamed, found.added, found.removed) == ((("c", "b"),), (), ())


def test_without_an_image_of_both_there_is_no_change() -> None:
    """A candidate none of whose images the parent judged has no change of accuracy."""
    made = candidate(content())
    nothing = replace(COMPARISON, images=0, labels=(), drop_low=-1.0, drop_high=1.0)
    found = compare(replace(made, manifest=replace(made.manifest, comparison=nothing)))
    assert found is not None
    assert (found.accuracy, found.changes) == (None, ())


def _compare(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> ComparisonSection:
    """Compare revisions given as right images and images of each label."""
    made = content(tuple(after), images=1)
    parent = content(tuple(before), images=1)
    found = compare(
        replace(
            made,
            metrics=_metrics(after),
            parent=Parent(manifest=parent.manifest, metrics=_metrics(before)),
        )
    )
    assert found is not None
    return found


def _metrics(labels: dict[str, tuple[int, int]]) -> Metrics:
    targets, called = [], []
    for index, (right, images) in enumerate(labels.values()):
        targets += [index] * images
        called += [index] * right + [(index + 1) % len(labels)] * (images - right)
    return evaluate(np.array(targets), np.eye(len(labels))[called], tuple(labels), folds=5)
