"""The table of labels leads to the weakest ones."""

from __future__ import annotations

import numpy as np

from topwork.bundle.metrics import Metrics, evaluate, wilson_interval
from topwork.report import labels


def test_the_weakest_label_comes_first() -> None:
    """Labels are ordered by recall, then by name; one that was not judged is last."""
    table = labels.table(_metrics([[9, 1, 0, 0], [5, 5, 0, 0], [0, 0, 0, 0], [0, 5, 0, 5]]))
    assert [row.label for row in table.rows] == ["b", "d", "a", "c"]
    assert table.rows[-1].recall is None


def test_recall_has_its_interval() -> None:
    """A label's recall has the Wilson interval of its images."""
    row = labels.table(_metrics([[8, 2], [0, 10]])).rows[0]
    assert row.recall is not None
    assert (row.recall.low, row.recall.high) == wilson_interval(8, 10)


def test_the_commonest_mistake_is_named() -> None:
    """What a label's images were called most often when wrong is named with its count."""
    found = labels.table(_metrics([[4, 1, 5], [0, 9, 1], [0, 0, 10]])).rows
    assert [(row.confused_with, row.confused_images) for row in found] == [
        ("c", 5),
        ("c", 1),
        ("", 0),
    ]


def test_what_was_never_called_has_no_precision() -> None:
    """A label that no image was called has no precision, rather than one of 0."""
    found = {row.label: row.precision for row in labels.table(_metrics([[0, 10], [0, 10]])).rows}
    assert found == {"a": None, "b": 0.5}


def test_many_labels_are_folded() -> None:
    """Of very many labels the weakest are shown; none is lost."""
    table = labels.table(_metrics(np.eye(60, dtype=int).tolist()))
    assert (len(table.rows), len(table.folded)) == (labels.WEAKEST, 60 - labels.WEAKEST)


def _metrics(confusion: list[list[int]]) -> Metrics:
    """Return the metrics of answers that give this confusion matrix."""
    counts = np.array(confusion)
    pairs = np.argwhere(counts >= 0).repeat(counts.ravel(), axis=0)
    names = tuple("abcd"[: len(counts)] if len(counts) <= 4 else map(str, range(len(counts))))
    return evaluate(pairs[:, 0], np.eye(len(counts))[pairs[:, 1]], names, folds=5)
