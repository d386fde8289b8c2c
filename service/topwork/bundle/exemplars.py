"""Exemplars: the embeddings of all training images, and the folds that they are judged by."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.duplicates import near_duplicates
from topwork.errors import Corrupt

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

    def counts(self) -> NDArray[np.int64]:
        """Return how many exemplars each label has, (C,)."""
        return np.bincount(self.targets, minlength=len(self.labels)).astype(np.int64)

    def data_digest(self) -> str:
        """Return the sha256 of what was learnt from: all image digests with their labels."""
        digest = hashlib.sha256()
        for image, target in zip(self.digests, self.targets, strict=True):
            digest.update(image.tobytes() + self.labels[target].encode() + b"\0")
        return digest.hexdigest()

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
    seen: NDArray[np.bool_] | None = None,
    names: Sequence[str] | None = None,
    thumbnails: Sequence[bytes] | None = None,
) -> Exemplars:
    """Return exemplars from N rows in any order: sorted, all but one of equal ones dropped.

    Of equal ones that which was ``seen`` is kept, then the one whose name comes first.
    """
    rows = len(row_labels)
    seen = np.zeros(rows, dtype=bool) if seen is None else seen
    names = names or [""] * rows
    thumbnails = thumbnails or [b""] * rows
    labels = tuple(sorted(set(row_labels)))
    position = {label: index for index, label in enumerate(labels)}
    targets = np.array([position[label] for label in row_labels], dtype=np.int64)
    words = digests.view(">u8")  # (N, 4): compares like the hexadecimal digest
    order = np.lexsort((np.array(names), ~seen, targets, *words.T[::-1]))
    keys = np.column_stack([words[order], targets[order]])
    first = np.ones(len(order), dtype=bool)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    kept = order[first]
    return Exemplars(
        embeddings=np.ascontiguousarray(embeddings[kept], dtype=np.float32),
        digests=digests[kept],
        fingerprints=fingerprints[kept],
        targets=targets[kept],
        labels=labels,
        seen=seen[kept],
        names=tuple(names[row] for row in kept),
        thumbnails=tuple(thumbnails[row] for row in kept),
    )


def merge(parts: Sequence[Exemplars]) -> Exemplars:
    """Return all exemplars of ``parts`` as one; the order of the parts does not matter."""
    return make(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.fingerprints for part in parts]),
        [part.labels[target] for part in parts for target in part.targets],
        seen=np.concatenate([part.seen for part in parts]),
        names=[name for part in parts for name in part.names],
        thumbnails=[thumbnail for part in parts for thumbnail in part.thumbnails],
    )


def to_bytes(exemplars: Exemplars) -> bytes:
    """Return a shard (npz); equal exemplars give equal bytes."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        embeddings=exemplars.embeddings,
        digests=exemplars.digests,
        fingerprints=exemplars.fingerprints,
        targets=exemplars.targets,
        labels=np.array(exemplars.labels, dtype=np.str_),
        seen=exemplars.seen,
        names=np.array(exemplars.names, dtype=np.str_),
        thumbnails=np.frombuffer(b"".join(exemplars.thumbnails), dtype=np.uint8),
        thumbnail_ends=np.cumsum([len(one) for one in exemplars.thumbnails], dtype=np.int64),
    )
    return buffer.getvalue()


def from_bytes(shard: bytes) -> Exemplars:
    """Return the exemplars of a shard. Raises Corrupt if it is none."""
    try:
        with np.load(io.BytesIO(shard), allow_pickle=False) as arrays:
            jpegs = arrays["thumbnails"].tobytes()
            ends = arrays["thumbnail_ends"].tolist()
            loaded = Exemplars(
                embeddings=arrays["embeddings"],
                digests=arrays["digests"],
                fingerprints=arrays["fingerprints"],
                targets=arrays["targets"],
                labels=tuple(arrays["labels"].tolist()),
                seen=arrays["seen"],
                names=tuple(arrays["names"].tolist()),
                thumbnails=tuple(jpegs[a:b] for a, b in pairwise([0, *ends])),
            )
    except Exception as error:  # zipfile and NumPy raise many classes on damaged files
        raise Corrupt(f"a shard of exemplars cannot be read: {error}") from error
    rows, width = (*loaded.embeddings.shape, 0, 0)[:2]
    for name, dtype, shape in (
        ("embeddings", "float32", (rows, width)),
        ("digests", "uint8", (rows, 32)),
        ("fingerprints", "uint8", (rows, 32)),
        ("targets", "int64", (rows,)),
        ("seen", "bool", (rows,)),
    ):
        array = getattr(loaded, name)
        if (array.dtype.name, array.shape) != (dtype, shape):
            raise Corrupt(
                f"a shard of exemplars has {name} of {array.dtype} {array.shape}, "
                f"not {dtype} {shape}"
            )
    if len(loaded.names) != rows or len(loaded.thumbnails) != rows:
        raise Corrupt(f"a shard of exemplars has not a name and a thumbnail for each of {rows}")
    if ((loaded.targets < 0) | (loaded.targets >= len(loaded.labels))).any():
        raise Corrupt(f"a shard of exemplars has targets outside its {len(loaded.labels)} labels")
    return loaded


def _fold(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % FOLDS
