"""Gate: the comparison that a candidate revision must pass to take its parent's place."""

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

CONFUSIONS = 10
"""Confused pairs of a comparison at most."""
OWN_CONFUSIONS = 3
"""Pairs of the taught label that are among them, however many others are worse."""
NAMED = 3
"""Labels or pairs that a sentence names at most."""

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Which of J judged images a revision called right, in exemplar order."""

    digests: NDArray[np.uint8]
    """(J, 32), the image digests."""
    targets: NDArray[np.int64]
    """(J,), class index."""
    right: NDArray[np.bool_]
    """(J,)"""
    labels: tuple[str, ...]
    metrics: Metrics

    @classmethod
    def of(cls, exemplars: Exemplars, metrics: Metrics) -> Judgement:
        """Return what ``learn`` judged of exemplars. Raises Corrupt if these are not those."""
        return cls._made(exemplars.digests, exemplars.targets, exemplars.seen, metrics)

    @classmethod
    def of_shards(cls, shards: Iterable[tuple[str, Shard]], metrics: Metrics) -> Judgement:
        """Return the same from a revision's shards, each with its label. Reads no embeddings."""
        parts = [(label, shard) for label, shard in shards if len(shard.seen)]
        index = {one.label: place for place, one in enumerate(metrics.per_label)}
        if unknown := {label for label, _ in parts} - index.keys():
            raise Corrupt(f"the metrics say nothing of the labels {sorted(unknown)}")
        if not parts:
            raise Corrupt("a revision without exemplars has nothing that was judged")
        return cls._made(
            np.concatenate([shard.digests for _, shard in parts]),
            np.repeat(
                np.array([index[label] for label, _ in parts], dtype=np.int64),
                [len(shard.seen) for _, shard in parts],
            ),
            np.concatenate([shard.seen for _, shard in parts]),
            metrics,
        )

    @classmethod
    def _made(
        cls,
        digests: NDArray[np.uint8],
        targets: NDArray[np.int64],
        seen: NDArray[np.bool_],
        metrics: Metrics,
    ) -> Judgement:
        rows = _judged(digests, targets, seen)
        if metrics.images != len(rows) or len(metrics.right) != -(-len(rows) // 8):
            raise Corrupt(
                f"the metrics judge {metrics.images} images, {len(metrics.right)} bytes of bits; "
                f"the exemplars to be judged are {len(rows)}"
            )
        bits = np.frombuffer(metrics.right, dtype=np.uint8)
        return cls(
            digests=digests[rows],
            targets=targets[rows],
            right=np.unpackbits(bits, count=len(rows)).astype(bool),
            labels=tuple(one.label for one in metrics.per_label),
            metrics=metrics,
        )


def compare(
    before: Judgement,
    after: Judgement,
    *,
    taught: str | None,
    renamed: Mapping[str, str] = NOTHING,
) -> Comparison:
    """Return what a candidate does to its parent's labels, image by image.

    Only images count that both judged under the same label; ``renamed`` gives the candidate's name
    of a label that the parent called otherwise. ``taught`` is the label that was added or got more
    images.
    """
    was, now, targets = _pairs(before, after, renamed)
    classes = len(after.labels)
    images, lost, gained, right = (
        np.bincount(targets[chosen], minlength=classes).tolist()
        for chosen in (was | True, was & ~now, ~was & now, was)
    )
    labels = tuple(
        LabelChange(
            label=label,
            images=images[place],
            recall_before=right[place] / images[place],
            recall_after=(right[place] - lost[place] + gained[place]) / images[place],
            lost=lost[place],
            gained=gained[place],
        )
        for place, label in enumerate(after.labels)
        if images[place]
    )
    accuracy_before = sum(one.recall_before for one in labels) / max(1, len(labels))
    accuracy_after = sum(one.recall_after for one in labels) / max(1, len(labels))
    low, high = drop_interval(labels)
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
        taught=None if taught is None else _taught(after.metrics, taught),
        confusions=_confusions(after.metrics, taught),
    )


def check(comparison: Comparison, gate: Gate) -> tuple[str, ...]:
    """Return a sentence with the numbers for each limit of ``gate`` that a candidate breaks.

    That is where the whole interval lies beyond it; see Gate.
    """
    failures = []
    if comparison.drop_low > gate.max_old_class_drop:
        failures.append(_drop_failure(comparison, gate.max_old_class_drop))
    taught = comparison.taught
    if taught is not None:
        had = [one.recall_before for one in comparison.labels if one.label == taught.label]
        least = min([gate.min_new_class_recall, *had])
        if taught.high < least:
            failures.append(_recall_failure(comparison, taught, least))
    return tuple(failures)


def _judged(
    digests: NDArray[np.uint8], targets: NDArray[np.int64], seen: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the judged rows in exemplar order: by digest, then label, each once, none seen."""
    words = np.ascontiguousarray(digests).view(">u8")  # (N, 4)
    order = np.lexsort((~seen, targets, *words.T[::-1]))
    keys = _keys(digests[order], targets[order])
    first = np.ones(len(order), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return np.asarray(order[first & ~seen[order]])


def _pairs(
    before: Judgement, after: Judgement, renamed: Mapping[str, str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Return which images were right before and after, (P,) each, and their candidate's class."""
    index = {label: place for place, label in enumerate(after.labels)}
    places = np.array(
        [index.get(renamed.get(label, label), -1) for label in before.labels], dtype=np.int64
    )
    targets = places[before.targets]
    kept = np.flatnonzero(targets >= 0)
    _, old, new = np.intersect1d(
        _keys(before.digests[kept], targets[kept]),
        _keys(after.digests, after.targets),
        assume_unique=True,
        return_indices=True,
    )
    return before.right[kept[old]], after.right[new], after.targets[new]


def _keys(digests: NDArray[np.uint8], targets: NDArray[np.int64]) -> NDArray[np.void]:
    """Return digest and class of each row as one value, (N,)."""
    classes = np.ascontiguousarray(targets[:, None]).view(np.uint8)  # (N, 8)
    joined = np.ascontiguousarray(np.concatenate([digests, classes], axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1])))[:, 0]


def _taught(metrics: Metrics, label: str) -> TaughtLabel:
    place, one = next(
        (place, one) for place, one in enumerate(metrics.per_label) if one.label == label
    )
    low, high = (
        wilson_interval(metrics.confusion[place][place], one.images) if one.images else (0.0, 1.0)
    )
    return TaughtLabel(label=label, images=one.images, recall=one.recall, low=low, high=high)


def _confusions(metrics: Metrics, taught: str | None) -> tuple[ConfusedLabels, ...]:
    labels = [one.label for one in metrics.per_label]
    wrong = np.array(metrics.confusion, dtype=np.int64)
    np.fill_diagonal(wrong, 0)
    images = np.array([max(1, one.images) for one in metrics.per_label])
    shares = wrong / images[:, None]
    rows, columns = np.nonzero(wrong)
    order = np.lexsort((columns, rows, -wrong[rows, columns], -shares[rows, columns]))
    pairs = list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))
    own = [pair for pair in pairs if taught in {labels[pair[0]], labels[pair[1]]}][:OWN_CONFUSIONS]
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


def _drop_failure(comparison: Comparison, most: float) -> str:
    worst = sorted(comparison.labels, key=lambda one: one.recall_after - one.recall_before)
    lost = ", ".join(
        f"{one.label!r} {_percent(one.recall_before)} to {_percent(one.recall_after)} % of "
        f"{_several(one.images, 'image')}"
        for one in worst[:NAMED]
        if one.recall_after < one.recall_before
    )
    return (
        f"accuracy on the {_several(len(comparison.labels), 'label')} of before fell by "
        f"{_percent(comparison.drop)} points, from {_percent(comparison.accuracy_before)} to "
        f"{_percent(comparison.accuracy_after)} % (95 % interval of the drop "
        f"{_percent(comparison.drop_low)} to {_percent(comparison.drop_high)}, "
        f"at most {_percent(most)} may be lost). Most of all: {lost}"
        f"{_confused(comparison.confusions)}"
    )


def _recall_failure(comparison: Comparison, taught: TaughtLabel, least: float) -> str:
    own = [one for one in comparison.confusions if taught.label in {one.label, one.called}]
    return (
        f"{taught.label!r} is called so for {_percent(taught.recall)} % of its "
        f"{_several(taught.images, 'image')} (95 % interval {_percent(taught.low)} to "
        f"{_percent(taught.high)} %, at least {_percent(least)} are asked for){_confused(own)}"
    )


def _confused(confusions: Sequence[ConfusedLabels]) -> str:
    pairs = ", ".join(
        f"{one.label!r} called {one.called!r} {_several(one.images, 'time')} "
        f"({_percent(one.share)} %)"
        for one in confusions[:NAMED]
    )
    return f". Most confused: {pairs}" if pairs else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
