"""Exemplars: embeddings of all training images, and their cross-validation folds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.embedding_rows import EmbeddingRows, collect, select
from topwork.bundle.groups import GROUP_BYTES, group_folds
from topwork.bundle.shards import Shard
from topwork.errors import Corrupt
from topwork.inputs.duplicates import near_duplicates

FOLDS = 5
"""Number of cross-validation folds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplars:
    """N exemplars, sorted by image digest, then label, without duplicates of that pair."""

    embedding_rows: EmbeddingRows
    """(N, D), the backbone's output; those of large sets stay in their shards until blocks of them
    are read."""
    digests: NDArray[np.uint8]
    """(N, 32), the image digests: sha256 of the preprocessed pixels."""
    fingerprints: NDArray[np.uint8]
    """(N, 32), perceptual hashes of 256 bits; those of near-duplicates differ in a few bits."""
    contents: NDArray[np.uint8]
    """(N, 32), sha256 of each encoded image file, as in ``images/``; zeros if unknown."""
    targets: NDArray[np.int64]
    """(N,), class indices: positions in ``labels``."""
    labels: tuple[str, ...]
    """Labels, sorted by code point."""
    seen: NDArray[np.bool_]
    """(N,), True if the backbone was fine-tuned on the image, which then cannot evaluate a head."""
    names: tuple[str, ...]
    """N file names for reports; empty if unknown."""
    thumbnails: tuple[bytes, ...]
    """N small JPEG files for reports; empty if missing."""
    groups: NDArray[np.uint8]
    """(N, 16), ids of the groups that folds keep together; zeros: none."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """Return all embeddings (N, D), which are copied to memory if the set is large."""
        return self.embedding_rows[:]

    def where(self, rows: NDArray[np.bool_]) -> Exemplars:
        """Return the exemplars that the mask ``rows`` (N,) selects, in order, with their labels."""
        selected = np.flatnonzero(rows)
        present, targets = np.unique(self.targets[selected], return_inverse=True)
        return Exemplars(
            embedding_rows=select(self.embedding_rows, selected),
            digests=self.digests[selected],
            fingerprints=self.fingerprints[selected],
            contents=self.contents[selected],
            targets=targets,
            labels=tuple(self.labels[target] for target in present),
            seen=self.seen[selected],
            names=tuple(self.names[row] for row in selected),
            thumbnails=tuple(self.thumbnails[row] for row in selected),
            groups=self.groups[selected],
        )

    def counts(self) -> NDArray[np.int64]:
        """Return the number of exemplars per label, (C,)."""
        return np.bincount(self.targets, minlength=len(self.labels)).astype(np.int64)

    def count_groups(self) -> int:
        """Return the number of different groups."""
        return len(np.unique(self.groups[self.groups.any(axis=1)], axis=0))

    def data_digest(self) -> str:
        """Return the sha256 of the training set: all image digests with their labels."""
        return data_digest(
            (image.tobytes(), self.labels[target])
            for image, target in zip(self.digests, self.targets, strict=True)
        )

    def folds(self, seed: int) -> NDArray[np.int64]:
        """Return the fold of each exemplar, (N,), 0 to FOLDS - 1; -1 if it was ``seen``.

        The photos of a label are sorted by a hash of ``seed`` and dealt to the folds, so that every
        training set has its share of each label, however few photos there are: with five flowers
        of each of five kinds the estimate of the accuracy was 0.03 too low, and 0.14 too low when
        the hash of a photo alone decided its fold. Near-duplicates with the same label share a
        fold: a photo that was uploaded twice cannot leak from training to evaluation. Folds of a
        label depend on its own photos alone, so neither a new class nor a new name moves them.
        Exemplars of the same group share a fold whatever their labels; see ``group_folds``.
        """
        prefix = seed.to_bytes(8, "big", signed=True)
        copies, dealt = np.empty((2, len(self)), dtype=np.int64)
        for target in range(len(self.labels)):
            rows = np.flatnonzero(self.targets == target)
            copies[rows] = rows[near_duplicates(self.fingerprints[rows])]
            keys = {row: _hash(prefix + self.digests[row].tobytes()) for row in copies[rows]}
            # Labels begin with different folds, or the first would have the most photos.
            first = int.from_bytes(min(keys.values(), default=b"")[-8:], "big") % FOLDS
            turns = enumerate(sorted(keys, key=keys.__getitem__), start=first)
            fold = {row: turn % FOLDS for turn, row in turns}
            dealt[rows] = [fold[row] for row in copies[rows]]
        if self.groups.any():
            grouped = group_folds(self.groups, copies, self.targets, folds=FOLDS, prefix=prefix)
            dealt = np.where(grouped < 0, dealt, grouped)
        return np.where(self.seen, -1, dealt)


def make(
    embeddings: NDArray[np.float32] | Sequence[NDArray[np.float32]],
    digests: NDArray[np.uint8],
    fingerprints: NDArray[np.uint8],
    row_labels: Sequence[str],
    *,
    contents: NDArray[np.uint8] | None = None,
    seen: NDArray[np.bool_] | None = None,
    names: Sequence[str] | None = None,
    thumbnails: Sequence[bytes] | None = None,
    groups: NDArray[np.uint8] | None = None,
) -> Exemplars:
    """Return exemplars from N rows in any order: sorted, without duplicates.

    ``embeddings`` is (N, D), or parts of it, which stay where they are if the set is large.
    Among duplicates a ``seen`` row wins, then one with a group, then the first name, then the
    smallest content, then the smallest group.
    """
    count = len(row_labels)
    contents = np.zeros((count, 32), dtype=np.uint8) if contents is None else contents
    seen = np.zeros(count, dtype=bool) if seen is None else seen
    names = names or [""] * count
    thumbnails = thumbnails or [b""] * count
    groups = np.zeros((count, GROUP_BYTES), dtype=np.uint8) if groups is None else groups
    labels = tuple(sorted(set(row_labels)))
    position = {label: index for index, label in enumerate(labels)}
    targets = np.array([position[label] for label in row_labels], dtype=np.int64)
    rows = _unique_rows(digests, targets, seen, groups, names, contents)
    return Exemplars(
        embedding_rows=np.ascontiguousarray(embeddings[rows], dtype=np.float32)
        if isinstance(embeddings, np.ndarray)
        else collect(embeddings, rows, len(labels)),
        digests=digests[rows],
        fingerprints=fingerprints[rows],
        contents=contents[rows],
        targets=targets[rows],
        labels=labels,
        seen=seen[rows],
        names=tuple(names[row] for row in rows),
        thumbnails=tuple(thumbnails[row] for row in rows),
        groups=groups[rows],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRows:
    """The shard and the row in it of each of N exemplars."""

    labels: tuple[str, ...]
    targets: NDArray[np.int64]
    """(N,), class indices."""
    parts: NDArray[np.int64]
    """(N,), index of the shard."""
    rows: NDArray[np.int64]
    """(N,), row in the shard."""

    @classmethod
    def of_split(cls, exemplars: Exemplars) -> ShardRows:
        """Return the places of exemplars in the shards of ``split``, one per label."""
        targets, counts = exemplars.targets, exemplars.counts()
        order, starts = np.argsort(targets, kind="stable"), np.cumsum(counts) - counts
        rows = np.empty(len(exemplars), dtype=np.int64)
        rows[order] = np.arange(len(exemplars)) - starts[targets[order]]
        return cls(labels=exemplars.labels, targets=targets, parts=targets, rows=rows)

    def flat(self, sizes: Sequence[int]) -> NDArray[np.int64]:
        """Return the rows in the concatenation of shards of these ``sizes``, (N,)."""
        starts = np.cumsum(sizes, dtype=np.int64) - np.array(sizes, dtype=np.int64)
        return np.asarray(starts[self.parts] + self.rows)


def shard_rows(parts: Sequence[tuple[str, Shard]]) -> ShardRows:
    """Return the places of the exemplars of ``merge`` in ``parts``, without reading embeddings."""
    shards = [shard for _, shard in parts]
    sizes = [len(shard.seen) for shard in shards]
    labels = tuple(sorted({label for label, _ in parts}))
    indices = np.array([labels.index(label) for label, _ in parts], dtype=np.int64)
    targets = np.repeat(indices, sizes)
    rows = _unique_rows(
        np.concatenate([shard.digests for shard in shards]),
        targets,
        np.concatenate([shard.seen for shard in shards]),
        np.concatenate([shard.groups for shard in shards]),
        [name for shard in shards for name in shard.names],
        np.concatenate([shard.contents for shard in shards]),
    )
    part = np.repeat(np.arange(len(parts)), sizes)[rows]
    starts = np.cumsum(sizes) - np.array(sizes)
    return ShardRows(labels=labels, targets=targets[rows], parts=part, rows=rows - starts[part])


def merge(parts: Sequence[tuple[str, Shard]], chosen: ShardRows | None = None) -> Exemplars:
    """Return the exemplars of all ``parts``, pairs of label and shard in any order.

    ``chosen`` is ``shard_rows(parts)``, if it is known. Copies the embeddings only once, and not at
    all if the set is large; see ``embedding_rows``. Raises Corrupt if their widths differ.
    """
    widths = {shard.embeddings.shape[1] for _, shard in parts}
    if len(widths) != 1:
        raise Corrupt(f"shards need embeddings of one width, not of {sorted(widths)}")
    chosen = chosen or shard_rows(parts)
    shards = [shard for _, shard in parts]
    rows = chosen.flat([len(shard) for shard in shards])
    names = [name for shard in shards for name in shard.names]
    thumbnails = [thumbnail for shard in shards for thumbnail in shard.thumbnails]
    return Exemplars(
        embedding_rows=collect([shard.embeddings for shard in shards], rows, len(chosen.labels)),
        digests=np.concatenate([shard.digests for shard in shards])[rows],
        fingerprints=np.concatenate([shard.fingerprints for shard in shards])[rows],
        contents=np.concatenate([shard.contents for shard in shards])[rows],
        targets=chosen.targets,
        labels=chosen.labels,
        seen=np.concatenate([shard.seen for shard in shards])[rows],
        names=tuple(names[row] for row in rows),
        thumbnails=tuple(thumbnails[row] for row in rows),
        groups=np.concatenate([shard.groups for shard in shards])[rows],
    )


def data_digest(pairs: Iterable[tuple[bytes, str]]) -> str:
    """Return the sha256 of a training set: each image digest with its label, in order."""
    digest = hashlib.sha256()
    for image, label in pairs:
        digest.update(image + label.encode() + b"\0")
    return digest.hexdigest()


def split(exemplars: Exemplars) -> tuple[tuple[str, Shard], ...]:
    """Return each label with the shard of its exemplars, in label order; inverse of ``merge``."""
    return tuple((label, shard_of(exemplars, label)) for label in exemplars.labels)


def shard_of(exemplars: Exemplars, label: str) -> Shard:
    """Return the shard of one label's exemplars."""
    own = exemplars.where(exemplars.targets == exemplars.labels.index(label))
    return Shard(
        embeddings=own.embeddings,
        digests=own.digests,
        fingerprints=own.fingerprints,
        contents=own.contents,
        seen=own.seen,
        names=own.names,
        thumbnails=own.thumbnails,
        groups=own.groups,
    )


def _unique_rows(
    digests: NDArray[np.uint8],
    targets: NDArray[np.int64],
    seen: NDArray[np.bool_],
    groups: NDArray[np.uint8],
    names: Sequence[str],
    contents: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Return the sorted row numbers, one for each pair of digest and target; see ``make``."""
    words = digests.view(">u8").astype(np.uint64)  # (N, 4): sorts like the hexadecimal digest
    order = np.lexsort((targets, *words.T[::-1]))
    words, targets = words[order], targets[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (words[1:] != words[:-1]).any(axis=1) | (targets[1:] != targets[:-1])
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(order))
    unique = order[starts]
    for group in np.flatnonzero(ends - starts > 1):
        unique[group] = min(
            order[starts[group] : ends[group]],
            key=lambda row: (
                not seen[row],
                not groups[row].any(),
                names[row],
                contents[row].tobytes(),
                groups[row].tobytes(),
            ),
        )
    return unique


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
