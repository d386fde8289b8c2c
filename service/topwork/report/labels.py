"""Section of the report: precision and recall of each label."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.metrics import Metrics
from topwork.report import intervals
from topwork.report.intervals import Share

WEAKEST = 20
"""Number of rows that are not folded if there are more than twice as many labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """Row of the table: recall and precision of one label."""

    label: str
    recall: Share | None
    """None if no image of the label was evaluated."""
    precision: float | None
    """None if the label was never predicted."""
    confused_with: str
    """Most frequent wrong prediction for the label's images; empty if there is no mistake."""
    confused_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """All labels, lowest recall first, labels without an evaluated image last."""

    rows: tuple[LabelRow, ...]
    folded: tuple[LabelRow, ...]
    """Rows that the reader has to unfold."""
    axis: float
    """Recall at the start of the interval bars."""


def table(metrics: Metrics) -> LabelTable:
    """Return the table of all labels."""
    predicted = [sum(column) for column in zip(*metrics.confusion, strict=True)]
    rows = sorted(
        (_row(metrics, index, predicted[index]) for index in range(len(predicted))),
        key=lambda row: (2.0 if row.recall is None else row.recall.value, row.label),
    )
    shown = WEAKEST if len(rows) > 2 * WEAKEST else len(rows)
    return LabelTable(
        rows=tuple(rows[:shown]),
        folded=tuple(rows[shown:]),
        axis=intervals.axis(row.recall.low for row in rows if row.recall is not None),
    )


def _row(metrics: Metrics, index: int, predicted: int) -> LabelRow:
    row, counts = metrics.per_label[index], metrics.confusion[index]
    wrong = [0 if other == index else images for other, images in enumerate(counts)]
    most = max(wrong)
    return LabelRow(
        label=row.label,
        recall=intervals.share(counts[index], row.images) if row.images else None,
        precision=row.precision if predicted else None,
        confused_with=metrics.per_label[wrong.index(most)].label if most else "",
        confused_images=most,
    )
