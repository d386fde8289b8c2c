"""Leakage: images of a test set that repeat training images, or belong to their groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.groups import GROUP_BYTES
from topwork.bundle.shards import Shard
from topwork.inputs.duplicates import near_duplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Prints:
    """Digests, fingerprints, groups and labels of N images, in the order of their shards."""

    digests: NDArray[np.uint8]
    """(N, 32)"""
    fingerprints: NDArray[np.uint8]
    """(N, 32)"""
    groups: NDArray[np.uint8]
    """(N, 16)"""
    targets: NDArray[np.int64]
    """(N,), position in ``labels``."""
    labels: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[tuple[str, Shard]]) -> Prints:
        """Return those of shards, each with its label, without reading embeddings."""
        labels = tuple(sorted({label for label, _ in parts}))
        places = np.array([labels.index(label) for label, _ in parts], dtype=np.int64)
        none = np.empty((0, 32), dtype=np.uint8)
        return cls(
            digests=np.concatenate([none, *(shard.digests for _, shard in parts)]),
            fingerprints=np.concatenate([none, *(shard.fingerprints for _, shard in parts)]),
            groups=np.concatenate([none[:, :GROUP_BYTES], *(shard.groups for _, shard in parts)]),
            targets=np.repeat(places, [len(shard.digests) for _, shard in parts]),
            labels=labels,
        )


def repeated_rows(new: Exemplars | Prints, old: Exemplars | Prints) -> NDArray[np.bool_]:
    """Return True for each row of ``new`` (N,) that repeats a row of ``old``.

    A row repeats another if the pixels are equal, or the images are near-duplicates with the same
    label. Labels may be different sets.
    """
    known = {digest.tobytes() for digest in old.digests}
    repeated = np.array([digest.tobytes() in known for digest in new.digests], dtype=bool)
    for target, label in enumerate(new.labels):
        rows = np.flatnonzero(new.targets == target)
        if label not in old.labels:
            continue
        trained = old.fingerprints[old.targets == old.labels.index(label)]
        groups = near_duplicates(np.concatenate([trained, new.fingerprints[rows]]))
        repeated[rows] |= np.isin(groups[len(trained) :], groups[: len(trained)])
    return repeated


def related_rows(new: Exemplars | Prints, old: Exemplars | Prints) -> NDArray[np.bool_]:
    """Return True for each row of ``new`` (N,) whose group has a row of ``old``."""
    known = {group.tobytes() for group in old.groups[old.groups.any(axis=1)]}
    return np.array([group.tobytes() in known for group in new.groups], dtype=bool)
