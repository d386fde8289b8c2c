"""Exemplars: the embeddings of all training images, and the folds that they are judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.shards import Shard
from topwork.errors import Corrupt
from topwork.inputs.duplicates import near_duplicates

FOLDS = 5
"""Folds of the cross-validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplars:
    """N exemplars, sorted by image digest, then label; no two share both."""

    embeddings: NDArray[np.float32]
    """(N, D), the backbone's output."""
    digests: NDArray[np.uint8]
    """(N, 32), the image digests: sha256 of the preprocessed pixels."""
    fingerprints: NDArray[np.uint8]
    """(N, 32), 256 bits that near-duplicates share but for a few."""
    contents: NDArray[np.uint8]
    """(N, 32), sha256 of each encoded image file, by which uploads are stored; zeros: not known."""
    targets: NDArray[np.int64]
    """(N,), class index: position in ``labels``."""
    labels: tuple[str, ...]
    """The labels, sorted by code point."""
    seen: NDArray[np.bool_]
    """(N,), whether the backbone was fine-tuned on the image: then it proves nothing of a head."""
    names: tuple[str, ...]
    """N names, for those who read reports; empty where none is known."""
    thumbnails: tuple[bytes, ...]
    """N small JPEG files, for the same; empty where there is none."""

    def __len__(self) -> int:
        return len(self.targets)

    def where(self, rows: NDArray[np.bool_]) -> Exemplars:
        """Return the exemplars that the mask ``rows``, (N,), says, with the labels that they have.

        Their order stays.
        """
        kept = np.flatnonzero(rows)
        present, targets = np.unique(self.targets[kept], return_inverse=True)
        return Exemplars(
            embeddings=self.embeddings[kept],
            digests=self.digests[kept],
            fingerprints=self.fingerprints[kept],
            contents=self.contents[kept],
            targets=targets,
            labels=tuple(self.labels[target] for target in present),
            seen=self.seen[kept],
            names=tuple(self.names[row] for row in kept),
            thumbnails=tuple(self.thumbnails[row] for row in kept),
        )

    def counts(self) -> NDArray[np.int64]:
        """Return how many exemplars each label has, (C,)."""
        return np.bincount(self.targets, minlength=len(self.labels)).astype(np.int64)

    def data_digest(self) -> str:
        """Return the sha256 of what was learnt from: all image digests with their labels."""
        return data_digest(
            (image.tobytes(), self.labels[target])
            for image, target in zip(self.digests, self.targets, strict=True)
        )

    def folds(self, seed: int) -> NDArray[np.int64]:
        """Return each exemplar's fold, (N,), 0 to FOLDS - 1; -1 where it was ``seen``.

        It is a hash of ``seed`` and the smallest image digest among the near-duplicates of the same
        label. So a photo that was uploaded twice cannot leak from one fold to another, and adding
        a class moves no old exemplar.
        """
        representative = np.arange(len(self))
        for target in range(len(self.labels)):
            rows = np.flatnonzero(self.targets == target)
            representative[rows] = rows[near_duplicates(self.fingerprints[rows])]
        prefix = seed.to_bytes(8, "big", signed=True)
        folds = [_fold(prefix + self.digests[row].tobytes()) for row in representative]
        return np.where(self.seen, -1, np.array(folds, dtype=np.int64))


def make(
    embeddings: NDArray[np.float32],
    digests: NDArray[np.uint8],
    fingerprints: NDArray[np.uint8],
    row_labels: Sequence[str],
    *,
    contents: NDArray[np.uint8] | None = None,
    seen: NDArray[np.bool_] | None = None,
    names: Sequence[str] | None = None,
    thumbnails: Sequence[bytes] | None = None,
) -> Exemplars:
    """Return exemplars from N rows in any order: sorted, all but one of equal ones dropped.

    Of equal ones that which was ``seen`` is kept, then the one whose name comes first, then the one
    with the smallest content.
    """
    rows = len(row_labels)
    contents = np.zeros((rows, 32), dtype=np.uint8) if contents is None else contents
    seen = np.zeros(rows, dtype=bool) if seen is None else seen
    names = names or [""] * rows
    thumbnails = thumbnails or [b""] * rows
    labels = tuple(sorted(set(row_labels)))
    position = {label: index for index, label in enumerate(labels)}
    targets = np.array([position[label] for label in row_labels], dtype=np.int64)
    kept = _kept(digests, targets, seen, names, contents)
    return Exemplars(
        embeddings=np.ascontiguousarray(embeddings[kept], dtype=np.float32),
        digests=digests[kept],
        fingerprints=fingerprints[kept],
        contents=contents[kept],
        targets=targets[kept],
        labels=labels,
        seen=seen[kept],
        names=tuple(names[row] for row in kept),
        thumbnails=tuple(thumbnails[row] for row in kept),
    )


def merge(parts: Sequence[tuple[str, Shard]]) -> Exemplars:
    """Return all exemplars of ``parts``, each a label and a shard; their order does not matter.

    Nothing but the result is as large as the embeddings. Raises Corrupt if their widths differ.
    """
    widths = {shard.embeddings.shape[1] for _, shard in parts}
    if len(widths) != 1:
        raise Corrupt(f"shards have embeddings of {sorted(widths)} numbers: one width is needed")
    shards = [shard for _, shard in parts]
    labels = tuple(sorted({label for label, _ in parts}))
    digests = np.concatenate([shard.digests for shard in shards])
    contents = np.concatenate([shard.contents for shard in shards])
    seen = np.concatenate([shard.seen for shard in shards])
    names = [name for shard in shards for name in shard.names]
    thumbnails = [thumbnail for shard in shards for thumbnail in shard.thumbnails]
    targets = np.repeat(
        np.array([labels.index(label) for label, _ in parts], dtype=np.int64),
        [len(shard) for shard in shards],
    )
    kept = _kept(digests, targets, seen, names, contents)
    return Exemplars(
        embeddings=_gather([shard.embeddings for shard in shards], kept),
        digests=digests[kept],
        fingerprints=np.concatenate([shard.fingerprints for shard in shards])[kept],
        contents=contents[kept],
        targets=targets[kept],
        labels=labels,
        seen=seen[kept],
        names=tuple(names[row] for row in kept),
        thumbnails=tuple(thumbnails[row] for row in kept),
    )


def data_digest(pairs: Iterable[tuple[bytes, str]]) -> str:
    """Return the sha256 of what was learnt from: each image digest with its label, in order."""
    digest = hashlib.sha256()
    for image, label in pairs:
        digest.update(image + label.encode() + b"\0")
    return digest.hexdigest()


def split(exemplars: Exemplars) -> tuple[tuple[str, Shard], ...]:
    """Return each label with the shard of its exemplars, in label order: what ``merge`` undoes."""
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
    )


def _kept(
    digests: NDArray[np.uint8],
    targets: NDArray[np.int64],
    seen: NDArray[np.bool_],
    names: Sequence[str],
    contents: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Return the rows to keep, in order: one of those that share digest and target."""
    words = digests.view(">u8").astype(np.uint64)  # (N, 4): compares like the hexadecimal digest
    order = np.lexsort((targets, *words.T[::-1]))
    words, targets = words[order], targets[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (words[1:] != words[:-1]).any(axis=1) | (targets[1:] != targets[:-1])
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(order))
    kept = order[starts]
    for group in np.flatnonzero(ends - starts > 1):
        kept[group] = min(
            order[starts[group] : ends[group]],
            key=lambda row: (not seen[row], names[row], contents[row].tobytes()),
        )
    return kept


def _gather(parts: Sequence[NDArray[np.float32]], kept: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the rows ``kept`` of all parts, as if these were one array, in a new array."""
    gathered = np.empty((len(kept), parts[0].shape[1]), dtype=np.float32)
    places = np.argsort(kept)
    sources = kept[places]
    first = 0
    for part in parts:
        here = slice(*np.searchsorted(sources, [first, first + len(part)]))
        gathered[places[here]] = part[sources[here] - first]
        first += len(part)
    return gathered


def _fold(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % FOLDS
