"""Comparison section: revisions are compared on their common labels."""

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


def test_compare_without_parent_returns_none() -> None:
    """A revision without a parent has no comparison section."""
    assert compare(content()) is None


def test_compare_lists_added_and_removed_labels() -> None:
    """Added, removed and common labels are separate."""
    found = _compare({"a": (9, 10), "b": (9, 10)}, {"b": (9, 10), "c": (9, 10)})
    assert (found.added, found.removed, found.labels) == (("c",), ("a",), 1)


def test_accuracy_is_compared_on_common_labels() -> None:
    """Images of a label that only one revision has are left out."""
    found = _compare({"a": (90, 100), "b": (0, 50)}, {"a": (80, 100), "c": (0, 50)})
    assert found.accuracy is not None
    assert found.accuracy.before == pytest.approx(0.9)
    assert found.accuracy.after == pytest.approx(0.8)


def test_compare_without_common_labels_has_no_accuracy() -> None:
    """The change of accuracy is None, not 0, if the revisions have no common label."""
    found = _compare({"a": (9, 10), "b": (9, 10)}, {"c": (9, 10), "d": (9, 10)})
    assert found.accuracy is None
    assert found.rows == ()


def test_the_largest_changes_come_first() -> None:
    """Rows are sorted by the absolute change; significant changes are counted."""
    before = {"a": (50, 100), "b": (90, 100), "c": (70, 100)}
    after = {"a": (51, 100), "b": (60, 100), "c": (95, 100)}
    found = _compare(before, after)
    assert [row.label for row in found.rows] == ["b", "c", "a"]
    assert (found.count("worse"), found.count("better")) == (1, 1)


def test_many_labels_are_folded() -> None:
    """The labels with the largest changes are shown, all others are folded."""
    labels = {f"label {index:02}": (index, 100) for index in range(60)}
    found = _compare(labels, dict.fromkeys(labels, (50, 100)))
    assert len(found.rows) == SHOWN
    assert {row.label for row in (*found.rows, *found.folded)} == set(labels)


def test_compare_uses_the_paired_comparison_of_the_manifest() -> None:
    """The manifest's paired intervals of drops become intervals of changes."""
    found = compare(candidate(content()))
    assert found is not None
    assert found.accuracy == AccuracyChange(before=0.95, after=0.9, low=-0.08, high=-0.02)
    assert (found.revision, found.paired, found.labels, found.ece_before) == (1, 60, 2, 0.01)
    assert [row.label for row in found.changes] == ["rose", "daisy"]
    low, high = drop_interval([COMPARISON.labels[1]])
    assert (found.changes[0].recall.low, found.changes[0].recall.high) == (-high, -low)
    assert (found.taught, found.confusions) == (COMPARISON.all_taught, COMPARISON.confusions)


def test_compare_ignores_a_revision_that_is_not_the_parent() -> None:
    """If another revision serves now, its metrics are not shown as the parent's."""
    made = candidate(content())
    assert made.parent is not None
    other = replace(made.parent, manifest=replace(made.parent.manifest, revision=7))
    with_parent, without = compare(made), compare(replace(made, parent=other))
    assert with_parent is not None
    assert without is not None
    assert (with_parent.added, without.added) == (("tulip",), ())
    assert with_parent.before is not None
    assert (without.before, without.revision) == (None, 1)


def test_renamed_label_is_neither_added_nor_removed() -> None:
    """RenameClass shows the old and the new name."""
    made = candidate(content(("a", "b")))
    assert made.parent is not None
    parent = replace(made.parent, manifest=replace(made.parent.manifest, labels=("a", "c")))
    manifest = replace(made.manifest, change="rename_class")
    found = compare(replace(made, manifest=manifest, parent=parent))
    assert found is not None
    assert (found.renamed, found.added, found.removed) == ((("c", "b"),), (), ())


def test_paired_comparison_without_images_has_no_accuracy() -> None:
    """The change of accuracy is None if the parent was evaluated on none of the images."""
    made = candidate(content())
    nothing = replace(COMPARISON, images=0, labels=(), drop_low=-1.0, drop_high=1.0)
    found = compare(replace(made, manifest=replace(made.manifest, comparison=nothing)))
    assert found is not None
    assert (found.accuracy, found.changes) == (None, ())


def _compare(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> ComparisonSection:
    """Compare revisions given as correct and total images per label."""
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
    targets, predicted = [], []
    for index, (right, images) in enumerate(labels.values()):
        targets += [index] * images
        predicted += [index] * right + [(index + 1) % len(labels)] * (images - right)
    return evaluate(np.array(targets), np.eye(len(labels))[predicted], tuple(labels), folds=5)
