"""Quality gate: the comparison with its parent that a candidate revision must pass to serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.comparison import (
    Comparison,
    ConfusedLabels,
    Gate,
    LabelChange,
    TaughtLabel,
    drop_interval,
)
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.metrics import Metrics, wilson_interval
from topwork.bundle.shards import Shard
from topwork.errors import Corrupt
from topwork.learning.task import take_turns

CONFUSIONS = 10
"""Largest number of confused pairs of a comparison."""
OWN_CONFUSIONS = 3
"""Number of pairs reserved for the added or extended labels."""
NAMED = 3
"""Largest number of labels or pairs that a message names."""

LEAST_SAMPLE = 10_000
"""Smallest number of evaluated images that can be a sample of a revision's images."""

NO_RENAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Correctness of a revision's cross-validated predictions for J images, in exemplar order.

    They are all exemplars that can be evaluated or, in large revisions, the first ones of each
    label, balanced across labels; see ``streamed``.
    """

    digests: NDArray[np.uint8]
    """(J, 32), image digests."""
    targets: NDArray[np.int64]
    """(J,), class index."""
    right: NDArray[np.bool_]
    """(J,), True if the prediction is correct."""
    labels: tuple[str, ...]
    metrics: Metrics

    @classmethod
    def of(cls, exemplars: Exemplars, metrics: Metrics) -> Judgement:
        """Return the judgement of exemplars. Raises Corrupt if the metrics are not theirs."""
        return cls._from_rows(exemplars.digests, exemplars.targets, exemplars.seen, metrics)

    @classmethod
    def of_shards(cls, shards: Iterable[tuple[str, Shard]], metrics: Metrics) -> Judgement:
        """Return the judgement of shards, each with its label, without reading embeddings."""
        parts = [(label, shard) for label, shard in shards if len(shard.seen)]
        index_of = {row.label: index for index, row in enumerate(metrics.per_label)}
        if unknown := {label for label, _ in parts} - index_of.keys():
            raise Corrupt(f"the metrics do not have the labels {sorted(unknown)}")
        if not parts:
            raise Corrupt("the revision has no exemplars")
        return cls._from_rows(
            np.concatenate([shard.digests for _, shard in parts]),
            np.repeat(
                np.array([index_of[label] for label, _ in parts], dtype=np.int64),
                [len(shard.seen) for _, shard in parts],
            ),
            np.concatenate([shard.seen for _, shard in parts]),
            metrics,
        )

    @classmethod
    def _from_rows(
        cls,
        digests: NDArray[np.uint8],
        targets: NDArray[np.int64],
        seen: NDArray[np.bool_],
        metrics: Metrics,
    ) -> Judgement:
        rows = _judged_rows(digests, targets, seen)
        if LEAST_SAMPLE <= metrics.images < len(rows):
            rows = rows[take_turns(targets[rows], metrics.images)]
        if metrics.images != len(rows) or len(metrics.right) != -(-len(rows) // 8):
            raise Corrupt(
                f"the metrics are of {metrics.images} images, {len(metrics.right)} bytes of bits; "
                f"the number of evaluated exemplars is {len(rows)}"
            )
        bits = np.frombuffer(metrics.right, dtype=np.uint8)
        return cls(
            digests=digests[rows],
            targets=targets[rows],
            right=np.unpackbits(bits, count=len(rows)).astype(bool),
            labels=tuple(row.label for row in metrics.per_label),
            metrics=metrics,
        )


def compare(
    before: Judgement,
    after: Judgement,
    *,
    taught: Sequence[str] = (),
    renamed: Mapping[str, str] = NO_RENAMES,
) -> Comparison:
    """Return the paired comparison of a candidate with its parent.

    It uses the images that both evaluated under the same label; ``renamed`` maps the parent's
    names of labels to the candidate's. ``taught`` are the labels that were added or extended.
    """
    right_before, right_after, targets = _pairs(before, after, renamed)
    classes = len(after.labels)
    images, lost, gained, right = (
        np.bincount(targets[chosen], minlength=classes).tolist()
        for chosen in (
            right_before | True,
            right_before & ~right_after,
            ~right_before & right_after,
            right_before,
        )
    )
    labels = tuple(
        LabelChange(
            label=label,
            images=images[index],
            recall_before=right[index] / images[index],
            recall_after=(right[index] - lost[index] + gained[index]) / images[index],
            lost=lost[index],
            gained=gained[index],
        )
        for index, label in enumerate(after.labels)
        if images[index]
    )
    accuracy_before = sum(change.recall_before for change in labels) / max(1, len(labels))
    accuracy_after = sum(change.recall_after for change in labels) / max(1, len(labels))
    low, high = drop_interval(labels)
    all_taught = tuple(_taught(after.metrics, label) for label in taught)
    return Comparison(
        images=len(targets),
        accuracy_before=accuracy_before,
        accuracy_after=accuracy_after,
        drop=accuracy_before - accuracy_after,
        drop_low=low,
        drop_high=high,
        ece_before=before.metrics.ece,
        ece_after=after.metrics.ece,
        labels=labels,
        taught=min(all_taught, key=lambda label: label.recall, default=None),
        taught_labels=all_taught if len(all_taught) > 1 else (),
        confusions=_confusions(after.metrics, taught),
    )


def check(comparison: Comparison, gate: Gate) -> tuple[str, ...]:
    """Return a message with the numbers for each limit of ``gate`` that a candidate exceeds.

    A limit is exceeded if the whole interval is beyond it; see Gate.
    """
    failures = [*check_drop(comparison, gate.max_old_class_drop)]
    recall_before = {change.label: change.recall_before for change in comparison.labels}
    for taught in comparison.all_taught:
        required = min(gate.min_new_class_recall, recall_before.get(taught.label, 1.0))
        if taught.high < required:
            failures.append(_recall_failure(comparison.confusions, taught, required))
    return tuple(failures)


def check_drop(comparison: Comparison, most: float, *, on: str = "") -> tuple[str, ...]:
    """Return a message if the whole interval of the drop is above ``most``.

    ``on`` describes the images that were compared, if they are not the training images.
    """
    if comparison.drop_low <= most:
        return ()
    return (_drop_failure(comparison, most, on or _count(len(comparison.labels), "old label")),)


def check_first(metrics: Metrics, gate: Gate) -> tuple[str, ...]:
    """Return a message for each label of a first revision whose recall is below ``gate``'s limit.

    All its labels are new, and there is no parent to compare it with.
    """
    confusions = _confusions(metrics, ())
    return tuple(
        _recall_failure(confusions, taught, gate.min_new_class_recall)
        for taught in (_taught(metrics, row.label) for row in metrics.per_label)
        if taught.high < gate.min_new_class_recall
    )


def _judged_rows(
    digests: NDArray[np.uint8], targets: NDArray[np.int64], seen: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the evaluated rows by digest, then label, without duplicates and seen rows."""
    words = np.ascontiguousarray(digests).view(">u8")  # (N, 4)
    order = np.lexsort((~seen, targets, *words.T[::-1]))
    keys = _keys(digests[order], targets[order])
    first = np.ones(len(order), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return np.asarray(order[first & ~seen[order]])


def _pairs(
    before: Judgement, after: Judgement, renamed: Mapping[str, str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Return correctness before and after, and the candidate's class, (P,) each."""
    index_of = {label: index for index, label in enumerate(after.labels)}
    indices = np.array(
        [index_of.get(renamed.get(label, label), -1) for label in before.labels], dtype=np.int64
    )
    targets = indices[before.targets]
    known = np.flatnonzero(targets >= 0)
    _, old, new = np.intersect1d(
        _keys(before.digests[known], targets[known]),
        _keys(after.digests, after.targets),
        assume_unique=True,
        return_indices=True,
    )
    return before.right[known[old]], after.right[new], after.targets[new]


def _keys(digests: NDArray[np.uint8], targets: NDArray[np.int64]) -> NDArray[np.void]:
    """Return digest and class of each row as one comparable value, (N,)."""
    classes = np.ascontiguousarray(targets[:, None]).view(np.uint8)  # (N, 8)
    joined = np.ascontiguousarray(np.concatenate([digests, classes], axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1])))[:, 0]


def _taught(metrics: Metrics, label: str) -> TaughtLabel:
    index, row = next(
        (index, row) for index, row in enumerate(metrics.per_label) if row.label == label
    )
    low, high = (
        wilson_interval(metrics.confusion[index][index], row.images) if row.images else (0.0, 1.0)
    )
    return TaughtLabel(label=label, images=row.images, recall=row.recall, low=low, high=high)


def _confusions(metrics: Metrics, taught: Sequence[str]) -> tuple[ConfusedLabels, ...]:
    labels = [row.label for row in metrics.per_label]
    wrong = np.array(metrics.confusion, dtype=np.int64)
    np.fill_diagonal(wrong, 0)
    images = np.array([max(1, row.images) for row in metrics.per_label])
    shares = wrong / images[:, None]
    rows, columns = np.nonzero(wrong)
    order = np.lexsort((columns, rows, -wrong[rows, columns], -shares[rows, columns]))
    pairs = list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))
    own = [pair for pair in pairs if {labels[index] for index in pair} & set(taught)]
    own = own[:OWN_CONFUSIONS]
    others = [pair for pair in pairs if pair not in own][: CONFUSIONS - len(own)]
    return tuple(
        ConfusedLabels(
            label=labels[row],
            called=labels[column],
            images=int(wrong[row, column]),
            share=float(shares[row, column]),
        )
        for row, column in pairs
        if (row, column) in own or (row, column) in others
    )


def _drop_failure(comparison: Comparison, most: float, on: str) -> str:
    worst = sorted(comparison.labels, key=lambda change: change.recall_after - change.recall_before)
    lost = ", ".join(
        f"{change.label!r} {_percent(change.recall_before)} to {_percent(change.recall_after)} % "
        f"of {_count(change.images, 'image')}"
        for change in worst[:NAMED]
        if change.recall_after < change.recall_before
    )
    return (
        f"accuracy on the {on} dropped by "
        f"{_percent(comparison.drop)} points, from {_percent(comparison.accuracy_before)} to "
        f"{_percent(comparison.accuracy_after)} % (95 % interval of the drop "
        f"{_percent(comparison.drop_low)} to {_percent(comparison.drop_high)}; the limit is "
        f"{_percent(most)}). Largest drops of recall: {lost}"
        f"{_confused(comparison.confusions)}"
    )


def _recall_failure(
    confusions: Sequence[ConfusedLabels], taught: TaughtLabel, required: float
) -> str:
    own = [pair for pair in confusions if taught.label in {pair.label, pair.called}]
    return (
        f"the recall of {taught.label!r} is {_percent(taught.recall)} % on "
        f"{_count(taught.images, 'image')} (95 % interval {_percent(taught.low)} to "
        f"{_percent(taught.high)} %; the minimum is {_percent(required)}){_confused(own)}"
    )


def _confused(confusions: Sequence[ConfusedLabels]) -> str:
    pairs = ", ".join(
        f"{pair.label!r} predicted as {pair.called!r} {_count(pair.images, 'time')} "
        f"({_percent(pair.share)} %)"
        for pair in confusions[:NAMED]
    )
    return f". Most confused: {pairs}" if pairs else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
