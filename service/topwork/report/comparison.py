"""What changed since the parent revision."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.metrics import Metrics
from topwork.report import intervals
from topwork.report.content import Content
from topwork.report.intervals import Change, Share

SHOWN = 20
"""Labels shown at once where there are more than twice as many; the others are folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChange:
    """How the recall of a label changed."""

    label: str
    recall: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A revision beside its parent."""

    revision: int
    """The parent's."""
    before: Metrics
    added: tuple[str, ...]
    """Labels that the parent did not have."""
    removed: tuple[str, ...]
    common: tuple[str, ...]
    accuracy: Change | None
    """On the images of the common labels; None where there are none."""
    rows: tuple[LabelChange, ...]
    """The common labels, the largest changes first."""
    folded: tuple[LabelChange, ...]
    """More rows, for those who ask."""
    better: int
    """Labels whose recall rose by more than the noise."""
    worse: int


def compare(content: Content) -> Comparison | None:
    """Return what changed; None where there is no parent."""
    if content.parent is None:
        return None
    before, after = content.parent.metrics, content.metrics
    old, new = content.parent.manifest.labels, content.manifest.labels
    common = tuple(label for label in new if label in set(old))
    was, now = _recalls(before), _recalls(after)
    changes = sorted(
        (
            LabelChange(label=label, recall=Change(before=was[label], after=now[label]))
            for label in common
            if label in was and label in now
        ),
        key=lambda row: (-abs(row.recall.value), row.label),
    )
    shown = SHOWN if len(changes) > 2 * SHOWN else len(changes)
    verdicts = [row.recall.verdict for row in changes]
    return Comparison(
        revision=content.parent.manifest.revision,
        before=before,
        added=tuple(label for label in new if label not in set(old)),
        removed=tuple(label for label in old if label not in set(new)),
        common=common,
        accuracy=_accuracy(before, after, common),
        rows=tuple(changes[:shown]),
        folded=tuple(changes[shown:]),
        better=verdicts.count("better"),
        worse=verdicts.count("worse"),
    )


def _recalls(metrics: Metrics) -> dict[str, Share]:
    return {
        one.label: intervals.share(metrics.confusion[index][index], one.images)
        for index, one in enumerate(metrics.per_label)
        if one.images
    }


def _accuracy(before: Metrics, after: Metrics, labels: tuple[str, ...]) -> Change | None:
    was, now = _share_on(before, labels), _share_on(after, labels)
    return None if was is None or now is None else Change(before=was, after=now)


def _share_on(metrics: Metrics, labels: tuple[str, ...]) -> Share | None:
    wanted = set(labels)
    rows = [index for index, one in enumerate(metrics.per_label) if one.label in wanted]
    images = sum(metrics.per_label[row].images for row in rows)
    right = sum(metrics.confusion[row][row] for row in rows)
    return intervals.share(right, images) if images else None
