"""Comparison of a revision with its parent, and the limits that a gate sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from topwork.bundle.numbers import Count

Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a candidate revision must keep to be served. Measured by cross-validation.

    A limit is broken where the whole 95 % interval lies beyond it: what is proven to be too bad is
    rejected, not what is not proven to be good. Of few images little can be proven.

    Measured with photos of five kinds of flowers. Right additions that passed: beside four kinds of
    the same size 97 % with 5 or 10 photos each, 98 % with 20, 93 % with 60, all with 200 or more;
    beside 400 photos each, 40 % with 5 photos, 76 % with 10, all with 20, 80 % with 60. (Rejected
    were kinds that their own few photos do not teach, and roses, which take 4 to 7 % from tulips.)
    Wrong ones that were rejected, a known kind or a mixture under a new label: beside 300 photos
    each, all from 5 photos on; beside classes of the same size, all from 60 on, of 20 a half or
    more, of 5 some. Wrong photos for a known label: 10 to 20 % up to 20 photos, 67 % with 60, all
    with 200.
    """

    max_old_class_drop: float = 0.02
    """How much of the accuracy on the parent's classes may be lost, 0..1; see ``Comparison.drop``.

    Right additions lose 0.01 to 0.02 of five classes: more classes are more ways to be wrong.
    """
    min_new_class_recall: float = 0.6
    """Share of the taught class's images that must be called so, 0..1.

    A class that the parent had and called so less often need only be called so as often.
    """
    max_conflicts: Count | None = None
    """Uploads that may show what another class has; None: any number. Checked before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChange:
    """One of the parent's labels, on the same images before and after."""

    label: str
    """As the candidate calls it."""
    images: Count
    """Judged in both."""
    recall_before: float
    recall_after: float
    lost: Count
    """Images that were called so before and are not after."""
    gained: Count
    """The other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """The label that was added or got more images."""

    label: str
    images: Count
    """All of its judged images."""
    recall: float
    low: float
    """Lower end of the recall's 95 % Wilson interval."""
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusedLabels:
    """Images of one label that the candidate calls another."""

    label: str
    called: str
    images: Count
    share: float
    """Of the label's judged images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate beside its parent, each by cross-validation: no image judges what learnt it."""

    images: Count
    """Of the parent's labels that both have, judged in both."""
    accuracy_before: float
    """The parent's on them: the mean of its labels' recalls, so that all labels count alike."""
    accuracy_after: float
    """The candidate's on the same, with every label that it has as a possible answer."""
    drop: float
    """``accuracy_before`` less ``accuracy_after``."""
    drop_low: float
    """Lower end of its 95 % interval, image paired with image; -1 without images."""
    drop_high: float
    """Upper end of the same; 1 without images."""
    ece_before: float
    """Expected calibration error of the parent, on all its images."""
    ece_after: float
    labels: tuple[LabelChange, ...]
    """The parent's labels that both have and that have such images, in label order."""
    taught: Taught | None
    """None where no label was."""
    confusions: tuple[ConfusedLabels, ...]
    """The candidate's most confused pairs, ten at most, worst share first.

    The taught label's three worst are among them.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a published revision may not serve."""

    gate: Gate
    failures: tuple[str, ...]
    """A sentence with the numbers for each rule that was broken."""


def drop_interval(labels: Sequence[LabelChange]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over labels of ``recall_before`` less ``recall_after``.

    Variances of paired shares, summed over the labels. A half is added to each cell of each label's
    2 x 2 table (Agresti and Min, 2005, Statistics in Medicine 24:729): so the interval has a width
    also where no image differs. Unlike theirs it lies around the difference itself, for what pulls
    5 images a label towards 0 adds up over 200 labels: then it held the truth in none of 3,000
    simulated cases. Like this it does in 93 to 100 % of them, with 2 to 200 labels of 5 to 400
    images each; beside large labels, one of 5 images that loses 30 % takes it to 84 %. -1 to 1
    without labels.
    """
    if not labels:
        return -1.0, 1.0
    drop = variance = 0.0
    for one in labels:
        images, change = one.images + 2, one.lost - one.gained
        apart = (one.lost + one.gained + 1) / images
        drop += change / one.images / len(labels)
        variance += (apart - (change / images) ** 2) / images / len(labels) ** 2
    half = Z * math.sqrt(variance)
    return max(-1.0, drop - half), min(1.0, drop + half)
