"""Section of the report: precision and recall of each label."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.metrics import Metrics
from topwork.report import intervals
from topwork.report.intervals import Share

WEAKEST = 20
"""Labels shown at once where there are more than twice as many; the others are folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """One label's line of the table."""

    label: str
    recall: Share | None
    """None where no image of it was judged."""
    precision: float | None
    """None where nothing was called so."""
    confused_with: str
    """What its images were called most often when wrong; empty when none was."""
    confused_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """All labels, the one of lowest recall first, those without a judged image last."""

    rows: tuple[LabelRow, ...]
    folded: tuple[LabelRow, ...]
    """More rows, for those who ask."""
    axis: float
    """Recall at which the interval bars begin."""


def table(metrics: Metrics) -> LabelTable:
    """Return the table of all labels."""
    called = [sum(column) for column in zip(*metrics.confusion, strict=True)]
    rows = sorted(
        (_row(metrics, index, called[index]) for index in range(len(called))),
        key=lambda row: (2.0 if row.recall is None else row.recall.value, row.label),
    )
    shown = WEAKEST if len(rows) > 2 * WEAKEST else len(rows)
    return LabelTable(
        rows=tuple(rows[:shown]),
        folded=tuple(rows[shown:]),
        axis=intervals.axis(row.recall.low for row in rows if row.recall is not None),
    )


def _row(metrics: Metrics, index: int, called: int) -> LabelRow:
    one, counts = metrics.per_label[index], metrics.confusion[index]
    wrong = [0 if other == index else images for other, images in enumerate(counts)]
    most = max(wrong)
    return LabelRow(
        label=one.label,
        recall=intervals.share(counts[index], one.images) if one.images else None,
        precision=one.precision if called else None,
        confused_with=metrics.per_label[wrong.index(most)].label if most else "",
        confused_images=most,
    )
