"""Label conflicts and duplicates of new images among the exemplars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.shards import Shard
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS, alike

BLOCK = 512, 4096
"""New and known rows compared at once; raising it uses more than the present 30 MB."""
NOT_NEAR = np.iinfo(np.int64).max
"""Rank of rows that are not near-duplicates."""
MAX_LABELS = 5
"""Number of other labels, nearest first, whose thumbnails are compared; raising it costs time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConflict:
    """New image that duplicates an exemplar of another label."""

    name: str
    """Name of the new image."""
    label: str
    """Label of the exemplar."""
    other: str
    """Name of the exemplar; may be empty."""
    exact: bool
    """True if all pixels are equal; False for near-duplicates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownExemplars:
    """Digests, fingerprints and labels of a revision's N exemplars, in the order of the shards."""

    digests: NDArray[np.uint8]
    """(N, 32)"""
    fingerprints: NDArray[np.uint8]
    """(N, 32)"""
    targets: NDArray[np.int64]
    """(N,), position in ``labels``."""
    labels: tuple[str, ...]
    shards: tuple[Shard, ...]
    ends: tuple[int, ...]
    """Row after the last row of each shard."""

    @classmethod
    def of(cls, shards: Iterable[tuple[str, Shard]]) -> KnownExemplars:
        """Return the exemplars of shards, each with its label, without reading embeddings."""
        parts = list(shards)
        labels = tuple(sorted({label for label, _ in parts}))
        sizes = [len(shard.digests) for _, shard in parts]
        empty = np.empty((0, 32), dtype=np.uint8)
        places = np.array([labels.index(label) for label, _ in parts], dtype=np.int64)
        return cls(
            digests=np.concatenate([empty, *(shard.digests for _, shard in parts)]),
            fingerprints=np.concatenate([empty, *(shard.fingerprints for _, shard in parts)]),
            targets=np.repeat(places, sizes),
            labels=labels,
            shards=tuple(shard for _, shard in parts),
            ends=tuple(accumulate(sizes)),
        )

    def find_same(self, new: Shard, label: str) -> NDArray[np.bool_]:
        """Return a mask (n,) of the rows of ``new`` with the pixels of an exemplar of ``label``."""
        own = np.array([known_label == label for known_label in self.labels], dtype=bool)[
            self.targets
        ]
        return np.isin(_values(new.digests), _values(self.digests[own]))

    def name(self, row: int) -> str:
        """Return the file name of a row."""
        shard, place = self._locate(row)
        return shard.names[place]

    def thumbnail(self, row: int) -> bytes:
        """Return the thumbnail of a row."""
        shard, place = self._locate(row)
        return shard.thumbnails[place]

    def _locate(self, row: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self.ends, row, side="right"))
        return self.shards[number], row - (self.ends[number - 1] if number else 0)


def find_conflicts(new: Shard, known: KnownExemplars, label: str) -> tuple[LabelConflict, ...]:
    """Return conflicts of ``new`` images, to be added as ``label``, with exemplars of other labels.

    ``known`` may contain new images as well: those of ``label`` conflict with none of it.

    Near-duplicates are defined as in the audit: within NEAR_DUPLICATE_BITS, and similar thumbnails
    if both have one. For each new image and other label, only the nearest exemplar is reported,
    identical pixels first; labels without identical pixels are limited to the nearest MAX_LABELS.
    Conflicts are in the order of ``new``, nearest first.
    """
    others = np.array([known_label != label for known_label in known.labels], dtype=bool)[
        known.targets
    ]
    rows = np.flatnonzero(others)
    conflicts = []
    for start in range(0, len(new), BLOCK[0]):
        block = np.arange(start, min(start + BLOCK[0], len(new)))
        for place, line in zip(block.tolist(), _nearest(new, block, known, rows), strict=True):
            ranks = np.sort(line[line < NOT_NEAR])
            same = int(np.count_nonzero(ranks < len(known.targets)))
            for rank in ranks[: same + MAX_LABELS].tolist():
                distance, row = divmod(rank, len(known.targets))
                thumbnails = new.thumbnails[place], known.thumbnail(row)
                if distance == 0 or not all(thumbnails) or alike(*thumbnails):
                    conflicts.append(
                        LabelConflict(
                            name=new.names[place],
                            label=known.labels[known.targets[row]],
                            other=known.name(row),
                            exact=distance == 0,
                        )
                    )
    return tuple(conflicts)


def _nearest(
    new: Shard, block: NDArray[np.int64], known: KnownExemplars, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rank of the nearest of ``rows`` per label for each row of ``block``, (B, C).

    The rank is N times the number of different bits, plus N if pixels differ, plus the known row;
    NOT_NEAR if no row is within NEAR_DUPLICATE_BITS. So identical pixels come first, then rows by
    distance.
    """
    count, classes = len(known.targets), len(known.labels)
    ranks = np.full(len(block) * classes, NOT_NEAR, dtype=np.int64)
    signs = _signs(new.fingerprints[block])
    for start in range(0, len(rows), BLOCK[1]):
        part = rows[start : start + BLOCK[1]]
        agreement = signs @ _signs(known.fingerprints[part]).T  # 256, less 2 for each other bit
        first, other = np.nonzero(agreement >= 256 - 2 * NEAR_DUPLICATE_BITS)
        distances = ((256 - agreement[first, other]) / 2).astype(np.int64)
        cells = first * classes + known.targets[part[other]]
        np.minimum.at(ranks, cells, (distances + 1) * count + part[other])
    places = {new.digests[row].tobytes(): place for place, row in enumerate(block.tolist())}
    same = np.isin(_values(known.digests[rows]), _values(new.digests[block]))
    for row in rows[same].tolist():
        cell = places[known.digests[row].tobytes()] * classes + int(known.targets[row])
        ranks[cell] = min(ranks[cell], row)
    return ranks.reshape(len(block), classes)


def _signs(fingerprints: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the bits as -1 and 1, (n, 256)."""
    return np.asarray(np.unpackbits(fingerprints, axis=1) * np.float32(2) - 1, dtype=np.float32)


def _values(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    """Return each digest as a comparable value, (n,)."""
    return np.ascontiguousarray(digests).view(np.dtype((np.void, 32)))[:, 0]
