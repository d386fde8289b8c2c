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
    """How the recall of a label changed."""

    label: str
    images: int
    recall: AccuracyChange


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSection:
    """A revision beside its parent."""

    revision: int
    """The parent's."""
    before: Metrics | None
    """None where they are not at hand."""
    ece_before: float
    added: tuple[str, ...]
    """Labels that the parent did not have."""
    removed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    """The old and the new name of a label."""
    labels: int
    """How many both know."""
    paired: int
    """Images that both judged, each compared with itself; 0: those of each are taken as others."""
    accuracy: AccuracyChange | None
    """On the images of the common labels; None where there are none."""
    changes: tuple[LabelChangeRow, ...]
    """The common labels that have images, the largest changes first."""
    taught: TaughtLabel | None
    confusions: tuple[ConfusedLabels, ...]

    @property
    def rows(self) -> tuple[LabelChangeRow, ...]:
        """What is shown at once."""
        return self.changes[:SHOWN] if len(self.changes) > 2 * SHOWN else self.changes

    @property
    def folded(self) -> tuple[LabelChangeRow, ...]:
        """More rows, for those who ask."""
        return self.changes[len(self.rows) :]

    def count(self, verdict: str) -> int:
        """Return how many labels have changed like that; see ``AccuracyChange.verdict``."""
        return sum(one.recall.verdict == verdict for one in self.changes)


def compare(content: Content) -> ComparisonSection | None:
    """Return what changed; None where there is nothing to compare with.

    As the manifest says it, image by image, where it does; else from the metrics of both.
    """
    if content.manifest.comparison is not None:
        return _paired(content, content.manifest.comparison)
    return None if content.parent is None else _unpaired(content, content.parent)


def _paired(content: Content, found: paired.Comparison) -> ComparisonSection:
    manifest = content.manifest
    parent = content.parent
    if parent is not None and parent.manifest.revision != manifest.parent:
        parent = None  # another one serves by now
    old = manifest.labels if parent is None else parent.manifest.labels
    added, removed = _without(manifest.labels, old), _without(old, manifest.labels)
    renamed = manifest.change == "rename_class" and len(added) == len(removed) == 1
    changes = (
        LabelChangeRow(
            label=one.label,
            images=one.images,
            recall=_change(one.recall_before, one.recall_after, drop_interval([one])),
        )
        for one in found.labels
    )
    return ComparisonSection(
        revision=manifest.parent,
        before=None if parent is None else parent.metrics,
        ece_before=found.ece_before,
        added=() if renamed else added,
        removed=() if renamed else removed,
        renamed=((removed[0], added[0]),) if renamed else (),
        labels=len(found.labels),
        paired=found.images,
        accuracy=_change(
            found.accuracy_before, found.accuracy_after, (found.drop_low, found.drop_high)
        )
        if found.images
        else None,
        changes=_largest_first(changes),
        taught=found.taught,
        confusions=found.confusions,
    )


def _unpaired(content: Content, parent: Parent) -> ComparisonSection:
    before, after = parent.metrics, content.metrics
    old, new = parent.manifest.labels, content.manifest.labels
    common = set(old) & set(new)
    was, now = _recalls(before), _recalls(after)
    share_before, share_after = _share_on(before, common), _share_on(after, common)
    changes = (
        LabelChangeRow(
            label=label,
            images=now[label].images,
            recall=intervals.change(was[label], now[label]),
        )
        for label in new
        if label in was and label in now
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
        taught=None,
        confusions=(),
    )


def _largest_first(changes: Iterable[LabelChangeRow]) -> tuple[LabelChangeRow, ...]:
    return tuple(sorted(changes, key=lambda one: (-abs(one.recall.value), one.label)))


def _change(before: float, after: float, drop: tuple[float, float]) -> AccuracyChange:
    """Return a change whose drop has that interval."""
    return AccuracyChange(before=before, after=after, low=-drop[1], high=-drop[0])


def _without(labels: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    known = set(others)
    return tuple(label for label in labels if label not in known)


def _recalls(metrics: Metrics) -> dict[str, Share]:
    return {
        one.label: intervals.share(metrics.confusion[index][index], one.images)
        for index, one in enumerate(metrics.per_label)
        if one.images
    }


def _share_on(metrics: Metrics, labels: set[str]) -> Share | None:
    rows = [index for index, one in enumerate(metrics.per_label) if one.label in labels]
    images = sum(metrics.per_label[row].images for row in rows)
    right = sum(metrics.confusion[row][row] for row in rows)
    return intervals.share(right, images) if images else None
