"""Label conflicts: new images that show what an exemplar shows, and duplicates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.shards import Shard
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS, alike

BLOCK = 512, 4096
"""New and known rows that are compared at once: bounds memory to some 30 MB."""
FAR = np.iinfo(np.int64).max
"""Rank of what is not near."""
NEAREST = 5
"""Other labels, nearest first, whose thumbnails a new image is compared with: bounds time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConflict:
    """A new image that shows what an exemplar of another label shows."""

    name: str
    """The new image's."""
    label: str
    """The other label."""
    other: str
    """The exemplar's name; may be empty."""
    exact: bool
    """Whether all pixels are the same; else they are near-duplicates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownExemplars:
    """The exemplars of a revision, shard after shard: N rows."""

    digests: NDArray[np.uint8]
    """(N, 32)"""
    fingerprints: NDArray[np.uint8]
    """(N, 32)"""
    targets: NDArray[np.int64]
    """(N,), position in ``labels``."""
    labels: tuple[str, ...]
    shards: tuple[Shard, ...]
    ends: tuple[int, ...]
    """The row after each shard's last."""

    @classmethod
    def of(cls, shards: Iterable[tuple[str, Shard]]) -> KnownExemplars:
        """Return what is known from shards, each with its label. Reads no embeddings."""
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

    def find_same(self, new: Exemplars, label: str) -> NDArray[np.bool_]:
        """Return which rows of ``new``, (n,), have the pixels of an exemplar of ``label``."""
        own = np.array([one == label for one in self.labels], dtype=bool)[self.targets]
        return np.isin(_values(new.digests), _values(self.digests[own]))

    def name(self, row: int) -> str:
        """Return a row's name."""
        shard, place = self._place(row)
        return shard.names[place]

    def thumbnail(self, row: int) -> bytes:
        """Return a row's thumbnail."""
        shard, place = self._place(row)
        return shard.thumbnails[place]

    def _place(self, row: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self.ends, row, side="right"))
        return self.shards[number], row - (self.ends[number - 1] if number else 0)


def find_conflicts(new: Exemplars, known: KnownExemplars, label: str) -> tuple[LabelConflict, ...]:
    """Return which images of ``new``, taught as ``label``, show what is known under other labels.

    Near-duplicates are those of the audit: within NEAR_DUPLICATE_BITS, and alike where both have
    thumbnails. Of each new image and other label only the nearest exemplar counts, one of the same
    pixels first; of labels that have none of those, only the NEAREST ones. In the order of ``new``,
    nearest first.
    """
    others = np.array([one != label for one in known.labels], dtype=bool)[known.targets]
    rows = np.flatnonzero(others)
    found = []
    for start in range(0, len(new), BLOCK[0]):
        block = np.arange(start, min(start + BLOCK[0], len(new)))
        for place, line in zip(block.tolist(), _nearest(new, block, known, rows), strict=True):
            ranks = np.sort(line[line < FAR])
            same = int(np.count_nonzero(ranks < len(known.targets)))
            for rank in ranks[: same + NEAREST].tolist():
                distance, row = divmod(rank, len(known.targets))
                thumbnails = new.thumbnails[place], known.thumbnail(row)
                if distance == 0 or not all(thumbnails) or alike(*thumbnails):
                    found.append(
                        LabelConflict(
                            name=new.names[place],
                            label=known.labels[known.targets[row]],
                            other=known.name(row),
                            exact=distance == 0,
                        )
                    )
    return tuple(found)


def _nearest(
    new: Exemplars, block: NDArray[np.int64], known: KnownExemplars, rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each row of ``block`` the nearest among ``rows`` of each label, (B, C).

    As a rank: N times the bits that differ, and N more where pixels do, plus the known row; FAR
    where none is within NEAR_DUPLICATE_BITS. So those of the same pixels come first, then by
    distance.
    """
    count, classes = len(known.targets), len(known.labels)
    ranks = np.full(len(block) * classes, FAR, dtype=np.int64)
    signs = _signs(new.fingerprints[block])
    for start in range(0, len(rows), BLOCK[1]):
        part = rows[start : start + BLOCK[1]]
        agreement = signs @ _signs(known.fingerprints[part]).T  # 256, less 2 for each other bit
        one, other = np.nonzero(agreement >= 256 - 2 * NEAR_DUPLICATE_BITS)
        distances = ((256 - agreement[one, other]) / 2).astype(np.int64)
        cells = one * classes + known.targets[part[other]]
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
    """Return each digest as one value that can be compared, (n,)."""
    return np.ascontiguousarray(digests).view(np.dtype((np.void, 32)))[:, 0]
