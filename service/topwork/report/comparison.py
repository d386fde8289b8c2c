"""Section of the report: the comparison with the parent revision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from topwork.bundle import comparison as paired
from topwork.bundle.comparison import ConfusedLabels, TaughtLabel, drop_interval
from topwork.bundle.metrics import Metrics
from topwork.report import intervals
from topwork.report.content import Content, Parent
from topwork.report.intervals import AccuracyChange, Share

SHOWN = 20
"""Labels shown at once where there are more than twice as many; the others are folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChangeRow:
    """Recall of a label before and after the change."""

    label: str
    images: int
    recall: AccuracyChange


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSection:
    """Comparison of a revision with its parent."""

    revision: int
    """Number of the parent revision."""
    before: Metrics | None
    """Metrics of the parent; None if they are not available."""
    ece_before: float
    added: tuple[str, ...]
    """Labels that the parent did not have."""
    removed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    """The old and the new name of a label."""
    labels: int
    """Number of common labels."""
    paired: int
    """Images that both revisions were evaluated on (paired comparison); 0: unpaired comparison."""
    accuracy: AccuracyChange | None
    """Accuracy on the images of the common labels; None if there are no such images."""
    changes: tuple[LabelChangeRow, ...]
    """Common labels with images, the largest changes first."""
    taught: tuple[TaughtLabel, ...]
    confusions: tuple[ConfusedLabels, ...]

    @property
    def rows(self) -> tuple[LabelChangeRow, ...]:
        """Rows that are not folded."""
        return self.changes[:SHOWN] if len(self.changes) > 2 * SHOWN else self.changes

    @property
    def folded(self) -> tuple[LabelChangeRow, ...]:
        """Rows that the reader has to unfold."""
        return self.changes[len(self.rows) :]

    def count(self, verdict: str) -> int:
        """Return the number of labels with this ``AccuracyChange.verdict``."""
        return sum(row.recall.verdict == verdict for row in self.changes)


def compare(content: Content) -> ComparisonSection | None:
    """Return the comparison with the parent; None if there is no parent.

    Uses the paired comparison of the manifest if it has one, else the metrics of both revisions.
    """
    if content.manifest.comparison is not None:
        return _compare_paired(content, content.manifest.comparison)
    return None if content.parent is None else _compare_unpaired(content, content.parent)


def _compare_paired(content: Content, comparison: paired.Comparison) -> ComparisonSection:
    manifest = content.manifest
    parent = content.parent
    if parent is not None and parent.manifest.revision != manifest.parent:
        parent = None  # another revision serves now
    return lay_out_paired(
        comparison,
        revision=manifest.parent,
        before=None if parent is None else parent.metrics,
        old=manifest.labels if parent is None else parent.manifest.labels,
        new=manifest.labels,
        is_rename=manifest.change == "rename_class",
    )


def lay_out_paired(
    comparison: paired.Comparison,
    *,
    revision: int,
    before: Metrics | None,
    old: tuple[str, ...],
    new: tuple[str, ...],
    is_rename: bool = False,
) -> ComparisonSection:
    """Return the paired comparison with ``revision``, which has the labels ``old``."""
    added, removed = _without(new, old), _without(old, new)
    renamed = is_rename and len(added) == len(removed) == 1
    changes = (
        LabelChangeRow(
            label=change.label,
            images=change.images,
            recall=_change(change.recall_before, change.recall_after, drop_interval([change])),
        )
        for change in comparison.labels
    )
    return ComparisonSection(
        revision=revision,
        before=before,
        ece_before=comparison.ece_before,
        added=() if renamed else added,
        removed=() if renamed else removed,
        renamed=((removed[0], added[0]),) if renamed else (),
        labels=len(comparison.labels),
        paired=comparison.images,
        accuracy=_change(
            comparison.accuracy_before,
            comparison.accuracy_after,
            (comparison.drop_low, comparison.drop_high),
        )
        if comparison.images
        else None,
        changes=_largest_first(changes),
        taught=comparison.all_taught,
        confusions=comparison.confusions,
    )


def _compare_unpaired(content: Content, parent: Parent) -> ComparisonSection:
    before, after = parent.metrics, content.metrics
    old, new = parent.manifest.labels, content.manifest.labels
    common = set(old) & set(new)
    recalls_before, recalls_after = _recalls(before), _recalls(after)
    share_before, share_after = _share_on(before, common), _share_on(after, common)
    changes = (
        LabelChangeRow(
            label=label,
            images=recalls_after[label].images,
            recall=intervals.change(recalls_before[label], recalls_after[label]),
        )
        for label in new
        if label in recalls_before and label in recalls_after
    )
    return ComparisonSection(
        revision=parent.manifest.revision,
        before=before,
        ece_before=before.ece,
        added=_without(new, old),
        removed=_without(old, new),
        renamed=(),
        labels=len(common),
        paired=0,
        accuracy=None
        if share_before is None or share_after is None
        else intervals.change(share_before, share_after),
        changes=_largest_first(changes),
        taught=(),
        confusions=(),
    )


def _largest_first(changes: Iterable[LabelChangeRow]) -> tuple[LabelChangeRow, ...]:
    return tuple(sorted(changes, key=lambda row: (-abs(row.recall.value), row.label)))


def _change(before: float, after: float, drop: tuple[float, float]) -> AccuracyChange:
    """Return the change; ``drop`` is the interval of the loss of accuracy."""
    return AccuracyChange(before=before, after=after, low=-drop[1], high=-drop[0])


def _without(labels: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    known = set(others)
    return tuple(label for label in labels if label not in known)


def _recalls(metrics: Metrics) -> dict[str, Share]:
    return {
        row.label: intervals.share(metrics.confusion[index][index], row.images)
        for index, row in enumerate(metrics.per_label)
        if row.images
    }


def _share_on(metrics: Metrics, labels: set[str]) -> Share | None:
    rows = [index for index, row in enumerate(metrics.per_label) if row.label in labels]
    images = sum(metrics.per_label[row].images for row in rows)
    right = sum(metrics.confusion[row][row] for row in rows)
    return intervals.share(right, images) if images else None
