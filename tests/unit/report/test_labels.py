"""Section on recall and precision: the labels with the lowest recall come first."""

from __future__ import annotations

import numpy as np

from topwork.bundle.metrics import Metrics, evaluate, wilson_interval
from topwork.report import labels


def test_rows_are_sorted_by_recall() -> None:
    """Labels are sorted by recall, then by name; labels without evaluated images come last."""
    table = labels.table(_metrics([[9, 1, 0, 0], [5, 5, 0, 0], [0, 0, 0, 0], [0, 5, 0, 5]]))
    assert [row.label for row in table.rows] == ["b", "d", "a", "c"]
    assert table.rows[-1].recall is None


def test_recall_has_its_interval() -> None:
    """The interval of the recall is the Wilson interval of the label's images."""
    row = labels.table(_metrics([[8, 2], [0, 10]])).rows[0]
    assert row.recall is not None
    assert (row.recall.low, row.recall.high) == wilson_interval(8, 10)


def test_most_frequent_mistake_is_named() -> None:
    """A row has the most frequent wrong prediction with its count."""
    found = labels.table(_metrics([[4, 1, 5], [0, 9, 1], [0, 0, 10]])).rows
    assert [(row.confused_with, row.confused_images) for row in found] == [
        ("c", 5),
        ("c", 1),
        ("", 0),
    ]


def test_label_that_was_never_predicted_has_no_precision() -> None:
    """The precision is None, not 0, if the label was never predicted."""
    found = {row.label: row.precision for row in labels.table(_metrics([[0, 10], [0, 10]])).rows}
    assert found == {"a": None, "b": 0.5}


def test_many_labels_are_folded() -> None:
    """The labels with the lowest recall are shown, all others are folded."""
    table = labels.table(_metrics(np.eye(60, dtype=int).tolist()))
    assert (len(table.rows), len(table.folded)) == (labels.WEAKEST, 60 - labels.WEAKEST)


def _metrics(confusion: list[list[int]]) -> Metrics:
    """Return the metrics of predictions with this confusion matrix."""
    counts = np.array(confusion)
    pairs = np.argwhere(counts >= 0).repeat(counts.ravel(), axis=0)
    names = tuple("abcd"[: len(counts)] if len(counts) <= 4 else map(str, range(len(counts))))
    return evaluate(pairs[:, 0], np.eye(len(counts))[pairs[:, 1]], names, folds=5)
