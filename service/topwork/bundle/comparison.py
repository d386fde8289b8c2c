"""Comparison of a revision with its parent, and the limits of the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from topwork.bundle.numbers import Count

Z = 1.959964
"""Standard normal quantile of the two-sided 95 % confidence interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Limits that a candidate revision must pass to be served, measured by cross-validation.

    A candidate fails a limit only if its whole 95 % interval is beyond the limit: the gate rejects
    revisions that are proven bad, not those that are not proven good. Few images prove little.

    Measured with photos of five kinds of flowers. Correct additions that passed: beside four kinds
    of the same size 97 % with 5 or 10 photos each, 98 % with 20, 93 % with 60, all with 200 or
    more; beside 400 photos each, 40 % with 5 photos, 76 % with 10, all with 20, 80 % with 60. (The
    gate rejected kinds that cannot be learnt from so few photos, and roses, which lower the recall
    of tulips by 4 to 7 %.) Wrong additions (a known kind, or a mixture, under a new label) that
    were rejected: beside 300 photos each, all with 5 photos or more; beside classes of the same
    size, all with 60 or more, at least half with 20, some with 5. Wrong photos added to a known
    label that were rejected: 10 to 20 % with up to 20 photos, 67 % with 60, all with 200.
    """

    max_old_class_drop: float = 0.02
    """Largest accepted ``Comparison.drop`` of the accuracy on the parent's classes, 0..1.

    Correct additions to five classes lose 0.01 to 0.02: more classes are more ways to be wrong.
    """
    min_new_class_recall: float = 0.6
    """Lowest accepted recall of each label that the change adds or extends, 0..1.

    If the parent has the label with a lower recall, the candidate needs only the parent's recall.
    """
    max_conflicts: Count | None = None
    """Most uploads that may conflict with other classes, checked before training; None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChange:
    """Recall of one of the parent's labels before and after the change, on the same images."""

    label: str
    """Name of the label in the candidate."""
    images: Count
    """Images that both revisions were evaluated on."""
    recall_before: float
    recall_after: float
    lost: Count
    """Images that only the parent classifies correctly."""
    gained: Count
    """Images that only the candidate classifies correctly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaughtLabel:
    """Recall of a label that the change adds or extends."""

    label: str
    images: Count
    """Images of the label that the candidate was evaluated on."""
    recall: float
    low: float
    """Lower bound of the recall's 95 % Wilson interval."""
    high: float
    """Upper bound of the same interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedLabels:
    """Off-diagonal cell of the candidate's confusion matrix."""

    label: str
    called: str
    """The candidate's label for ``images`` images of ``label``."""
    images: Count
    share: float
    """``images`` divided by all evaluated images of the label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate and parent, both by cross-validation: no head is evaluated on images it learnt."""

    images: Count
    """Images of the labels that both revisions have, evaluated in both."""
    accuracy_before: float
    """Accuracy of the parent on ``images``: the mean of the labels' recalls (balanced accuracy)."""
    accuracy_after: float
    """The same of the candidate, with all its labels as possible answers."""
    drop: float
    """``accuracy_before`` minus ``accuracy_after``."""
    drop_low: float
    """Lower bound of the drop's paired 95 % interval; -1 without images."""
    drop_high: float
    """Upper bound of the same interval; 1 without images."""
    ece_before: float
    """Expected calibration error of the parent, on all its images."""
    ece_after: float
    """The same of the candidate."""
    labels: tuple[LabelChange, ...]
    """Labels that both revisions have and that have such images, in label order."""
    taught: TaughtLabel | None
    """Of several labels the one with the lowest recall; None if no label is added or extended."""
    confusions: tuple[ConfusedLabels, ...]
    """The candidate's ten most confused pairs, largest share first.

    They include the three worst of the taught labels.
    """
    taught_labels: tuple[TaughtLabel, ...] = ()
    """All labels that the change adds or extends, in label order, if they are several."""

    @property
    def all_taught(self) -> tuple[TaughtLabel, ...]:
        """All labels that the change adds or extends, in label order."""
        return self.taught_labels or (() if self.taught is None else (self.taught,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Reasons for which the gate rejected a published revision, so that it may not serve."""

    gate: Gate
    failures: tuple[str, ...]
    """One sentence with the numbers for each limit that was exceeded."""


def drop_interval(labels: Sequence[LabelChange]) -> tuple[float, float]:
    """Return the 95 % interval of the mean drop in recall over the labels; -1 to 1 without labels.

    Sums the variances of paired proportions over the labels. A half is added to each cell of each
    label's 2 x 2 table (Agresti and Min, 2005, Statistics in Medicine 24:729), so that the interval
    has a width even if no image differs. Unlike theirs, the interval is centred on the observed
    drop: their shift towards 0, with 5 images per label, adds up over 200 labels, and the interval
    then covered the true drop in none of 3,000 simulations. This one covers it in 93 to 100 %, with
    2 to 200 labels of 5 to 400 images each; among large labels, one of 5 images that loses 30 %
    lowers the coverage to 84 %.
    """
    if not labels:
        return -1.0, 1.0
    drop = variance = 0.0
    for label in labels:
        images, change = label.images + 2, label.lost - label.gained
        discordant = (label.lost + label.gained + 1) / images
        drop += change / label.images / len(labels)
        variance += (discordant - (change / images) ** 2) / images / len(labels) ** 2
    half = Z * math.sqrt(variance)
    return max(-1.0, drop - half), min(1.0, drop + half)
