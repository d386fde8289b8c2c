"""Data audit: findings about training images, from their exemplars alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.findings import Finding
from topwork.bundle.metrics import wilson_interval
from topwork.inputs.duplicates import alike, closest_pairs
from topwork.learning.learn import Judged

MAX_SINGLE_SUSPECTS = 50
"""Largest number of suspected images with their own finding; the others share a finding."""

IMBALANCE = 10.0
"""Ratio of the largest to the smallest class above which the audit warns.

Measured with balanced weights: the recall of a kind of flower with 40 photos was 0.74 beside kinds
with 400 photos, 0.86 beside kinds with 40.
"""

WIDE = 0.1
"""Width of the accuracy's 95 % interval above which the audit warns."""

WIDE_RECALL = 0.2
"""Width of the 95 % interval of a label's recall above which the audit adds a note."""

ENOUGH_TO_SPREAD = 20
"""Smallest number of images per label that chance spreads over the folds."""


def audit_exemplars(
    exemplars: Exemplars, judged: Judged | None, *, seed: int, threads: int = 1
) -> list[Finding]:
    """Return findings about the training images, in a fixed order.

    ``judged`` is the result of ``learn`` for these exemplars and ``seed``; None: no head could be
    learnt, and checks that need a head are skipped. The number of ``threads`` does not change them.
    """
    folds = exemplars.folds(seed) if judged is None or judged.folds is None else judged.folds
    pairs = _confirmed(
        exemplars, closest_pairs(exemplars.fingerprints, exemplars.targets, threads=threads)
    )
    return [
        *_several_labels(exemplars),
        *_copies_across_labels(exemplars, pairs, folds),
        *([] if judged is None else _suspected(exemplars, judged)),
        *_imbalance(exemplars),
        *([] if judged is None else _wide_intervals(exemplars, judged)),
        *_uneven_folds(exemplars, folds),
        *_copies_within_labels(exemplars, pairs),
    ]


def suspects(
    targets: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> list[tuple[int, int]]:
    """Return rows of suspected label errors, each with its probable class, the likeliest first.

    Confident learning (Northcutt et al., JAIR 2021) on out-of-fold probabilities (N, C): a class's
    threshold is the mean probability that its images have for it. A row is suspected if the
    probability of its class is below the threshold, and another class is more probable and reaches
    its threshold. Sorted by the margin between the two probabilities.

    Measured on 2,000 photos of flowers with 3 % of the labels changed at random: recall 75 %,
    precision 71 %, precision of the first 20 suspects 95 %. 26 unchanged labels were suspected;
    about six of them were wrong, four photos showed two kinds, the others were unusual.

    These are cleanlab's suspects with ``filter_by="confident_learning"``. Its filter ``both`` finds
    10 points more of the errors with as many false alarms among its suspects, but heads learnt
    without them were no better: with 10, 20 and 40 % errors in 1,000 photos the accuracy was 0.917,
    0.895 and 0.870 instead of 0.917, 0.896 and 0.888.
    """
    all_rows = np.arange(len(targets))
    label_probabilities = probabilities[all_rows, targets]
    images = np.bincount(targets, minlength=probabilities.shape[1])
    sums = np.bincount(targets, weights=label_probabilities, minlength=probabilities.shape[1])
    thresholds = np.where(images > 0, sums / np.maximum(images, 1), np.inf)
    confident = probabilities >= thresholds
    others = np.where(confident, probabilities, 0)
    others[all_rows, targets] = 0
    probable = others.argmax(axis=1)
    margin = others[all_rows, probable] - label_probabilities
    rows = np.flatnonzero((margin > 0) & ~confident[all_rows, targets])
    rows = rows[np.argsort(-margin[rows], kind="stable")]
    return list(zip(rows.tolist(), probable[rows].tolist(), strict=True))


def _suspected(exemplars: Exemplars, judged: Judged) -> Iterator[Finding]:
    """Yield suspected label errors as notes: most data sets have some, and a person must decide."""
    targets, labels = exemplars.targets[judged.rows], exemplars.labels
    suspected = suspects(targets, judged.probabilities)
    for row, probable in suspected[:MAX_SINGLE_SUSPECTS]:
        looks_like, label = labels[probable], labels[targets[row]]
        probabilities = judged.probabilities[row]
        images = _names(exemplars, [judged.rows[row]])
        yield Finding(
            kind="suspected_label",
            severity="note",
            message=f"{images[0] if images else 'an image'} is labelled {label!r} but looks like "
            f"{looks_like!r}: probability {probabilities[probable]:.3f} against "
            f"{probabilities[targets[row]]:.3f}",
            images=images,
            labels=(label, looks_like),
        )
    if rest := suspected[MAX_SINGLE_SUSPECTS:]:
        concerned = {targets[row] for row, _ in rest} | {probable for _, probable in rest}
        yield Finding(
            kind="suspected_labels",
            severity="note",
            message=f"{_count(len(rest), 'more image')} with a suspected label, less clearly "
            f"so than the first {MAX_SINGLE_SUSPECTS}",
            images=_names(exemplars, [judged.rows[row] for row, _ in rest]),
            labels=tuple(labels[index] for index in sorted(concerned)),
        )


def _several_labels(exemplars: Exemplars) -> Iterator[Finding]:
    """Yield images with several labels; equal digests are adjacent, in label order."""
    rows_by_targets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for _, same in groupby(range(len(exemplars)), lambda row: exemplars.digests[row].tobytes()):
        rows = list(same)
        if len(rows) > 1:
            rows_by_targets[tuple(exemplars.targets[rows].tolist())] += rows
    for targets, rows in sorted(rows_by_targets.items()):
        labels = tuple(exemplars.labels[target] for target in targets)
        yield Finding(
            kind="several_labels",
            severity="warning",
            message=f"{_count(len(rows) // len(labels), 'image')} with identical pixels under the "
            f"labels {_join(labels)}: only one label can be right",
            images=_names(exemplars, rows),
            labels=labels,
        )


def _copies_across_labels(
    exemplars: Exemplars, pairs: NDArray[np.int64], folds: NDArray[np.int64]
) -> Iterator[Finding]:
    pairs_by_targets: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs.tolist():
        first, second = sorted(pair, key=lambda row: int(exemplars.targets[row]))
        targets = int(exemplars.targets[first]), int(exemplars.targets[second])
        equal = (exemplars.digests[first] == exemplars.digests[second]).all()
        if targets[0] != targets[1] and not equal:
            pairs_by_targets[targets].append((first, second))
    for targets, alike_pairs in sorted(pairs_by_targets.items()):
        labels = tuple(exemplars.labels[target] for target in targets)
        in_different_folds = sum(
            bool(folds[first] != folds[second]) for first, second in alike_pairs
        )
        yield Finding(
            kind="near_duplicates_across_labels",
            severity="warning",
            message=f"{_count(len(alike_pairs), 'pair')} of near-duplicates have different "
            f"labels, {_join(labels)}; {in_different_folds} of them are in different folds, where "
            "each image is evaluated by a head that learnt the other label",
            images=_names(exemplars, [row for pair in alike_pairs for row in pair]),
            labels=labels,
        )


def _copies_within_labels(exemplars: Exemplars, pairs: NDArray[np.int64]) -> Iterator[Finding]:
    same = exemplars.targets[pairs[:, 0]] == exemplars.targets[pairs[:, 1]]
    groups = _groups(pairs[same])
    for target, label in enumerate(exemplars.labels):
        own = [group for group in groups if exemplars.targets[group[0]] == target]
        if not own:
            continue
        rows = [row for group in own for row in group]
        yield Finding(
            kind="near_duplicates",
            severity="note",
            message=f"{_count(len(rows), 'image')} labelled {label!r} in "
            f"{_count(len(own), 'group')} of near-duplicates; the largest has "
            f"{max(map(len, own))}; each group shares a fold",
            images=_names(exemplars, rows),
            labels=(label,),
        )


def _imbalance(exemplars: Exemplars) -> Iterator[Finding]:
    counts = exemplars.counts()
    most, fewest = int(counts.argmax()), int(counts.argmin())
    ratio = counts[most] / counts[fewest]
    if ratio >= IMBALANCE:
        labels = exemplars.labels[most], exemplars.labels[fewest]
        yield Finding(
            kind="imbalance",
            severity="warning",
            message=f"{labels[0]!r} has {counts[most]} images, {ratio:.0f} times as many as "
            f"{labels[1]!r} with {counts[fewest]}: balanced weights compensate only in part",
            images=(),
            labels=labels,
        )


def _wide_intervals(exemplars: Exemplars, judged: Judged) -> Iterator[Finding]:
    targets = exemplars.targets[judged.rows]
    right = judged.probabilities.argmax(axis=1) == targets
    if not len(right):
        return
    low, high = wilson_interval(int(right.sum()), len(right))
    if high - low >= WIDE:
        yield Finding(
            kind="wide_interval",
            severity="warning",
            message=f"too few images ({len(right)}) for a precise accuracy: {right.mean():.3f}, "
            f"95 % interval {low:.3f} to {high:.3f}",
            images=(),
            labels=(),
        )
    wide = []
    for target in np.unique(targets):
        own = right[targets == target]
        low, high = wilson_interval(int(own.sum()), len(own))
        if high - low >= WIDE_RECALL:
            wide.append((len(own), exemplars.labels[target], low, high))
    if wide:
        images, label, low, high = min(wide)
        yield Finding(
            kind="wide_recall",
            severity="note",
            message=f"{_count(len(wide), 'label')} with too few images for a precise recall; "
            f"{label!r} has fewest: {images}, 95 % interval {low:.3f} to {high:.3f}",
            images=(),
            labels=tuple(label for _, label, _, _ in wide),
        )


def _uneven_folds(exemplars: Exemplars, folds: NDArray[np.int64]) -> Iterator[Finding]:
    evaluated = folds >= 0
    cells = exemplars.targets[evaluated] * FOLDS + folds[evaluated]
    counts = np.bincount(cells, minlength=FOLDS * len(exemplars.labels)).reshape(-1, FOLDS)
    for label, own in zip(exemplars.labels, counts, strict=True):
        images, fullest = int(own.sum()), int(own.max())
        if images >= ENOUGH_TO_SPREAD and fullest > images / 2:
            yield Finding(
                kind="uneven_folds",
                severity="warning",
                message=f"{fullest} of {images} images labelled {label!r} are in one fold, as "
                "near-duplicates and images of one group are: they are evaluated by a head that "
                f"learnt the label from the other {images - fullest}",
                images=(),
                labels=(label,),
            )


def _confirmed(exemplars: Exemplars, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs with similar thumbnails, or without a thumbnail of both images."""
    thumbnails = exemplars.thumbnails
    confirmed = [
        not (thumbnails[first] and thumbnails[second])
        or alike(thumbnails[first], thumbnails[second])
        for first, second in pairs.tolist()
    ]
    return np.asarray(pairs[np.array(confirmed, dtype=bool)])


def _groups(pairs: NDArray[np.int64]) -> list[list[int]]:
    """Return the connected components of ``pairs``: sorted lists of rows, sorted."""
    group: dict[int, list[int]] = {}
    for first, second in pairs.tolist():
        small, large = sorted((group.get(first, [first]), group.get(second, [second])), key=len)
        if small is not large:
            large += small
        group.update(dict.fromkeys((*small, first, second), large))
    distinct = {id(rows): rows for rows in group.values()}
    return sorted(sorted(rows) for rows in distinct.values())


def _names(exemplars: Exemplars, rows: Iterable[int]) -> tuple[str, ...]:
    return tuple(name for row in rows if (name := exemplars.names[row]))


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _join(labels: tuple[str, ...]) -> str:
    return " and ".join(repr(label) for label in labels)
