"""Exemplars: the embeddings of all training images, and the folds that they are judged by."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topwork.bundle.image import Pixels
from topwork.errors import Corrupt

FOLDS = 5
"""Folds of the cross-validation."""

NEAR_DUPLICATE_BITS = 20
"""Fingerprints of one label that differ in at most so many of 256 bits are of one photo.

Measured: in 2,000 photos of flowers the pairs up to 18 bits were double uploads and the next at 25
neighbours of a series; of 300 X-rays, all alike to the eye, no two came below 23.
"""


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
        """Return each exemplar's fold, (N,), 0 to FOLDS - 1.

        It is a hash of ``seed`` and the smallest image digest among the near-duplicates of the same
        label. So a photo that was uploaded twice cannot leak from one fold to another, and adding
        a class moves no old exemplar.
        """
        representative = np.arange(len(self))
        for target in range(len(self.labels)):
            rows = np.flatnonzero(self.targets == target)
            representative[rows] = rows[_near_duplicates(self.fingerprints[rows])]
        prefix = seed.to_bytes(8, "big", signed=True)
        return np.array(
            [_fold(prefix + self.digests[row].tobytes()) for row in representative], dtype=np.int64
        )


def make(
    embeddings: NDArray[np.float32],
    digests: NDArray[np.uint8],
    fingerprints: NDArray[np.uint8],
    row_labels: Sequence[str],
) -> Exemplars:
    """Return exemplars from N rows in any order: sorted, the second of equal ones dropped."""
    labels = tuple(sorted(set(row_labels)))
    position = {label: index for index, label in enumerate(labels)}
    targets = np.array([position[label] for label in row_labels], dtype=np.int64)
    words = digests.view(">u8")  # (N, 4): compares like the hexadecimal digest
    order = np.lexsort((targets, *words.T[::-1]))
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
    )


def merge(parts: Sequence[Exemplars]) -> Exemplars:
    """Return all exemplars of ``parts`` as one; the order of the parts does not matter."""
    return make(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.fingerprints for part in parts]),
        [part.labels[target] for part in parts for target in part.targets],
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
    )
    return buffer.getvalue()


def from_bytes(shard: bytes) -> Exemplars:
    """Return the exemplars of a shard. Raises Corrupt if it is none."""
    try:
        with np.load(io.BytesIO(shard), allow_pickle=False) as arrays:
            loaded = Exemplars(
                embeddings=arrays["embeddings"],
                digests=arrays["digests"],
                fingerprints=arrays["fingerprints"],
                targets=arrays["targets"],
                labels=tuple(str(label) for label in arrays["labels"]),
            )
    except Exception as error:  # zipfile and NumPy raise many classes on damaged files
        raise Corrupt(f"a shard of exemplars cannot be read: {error}") from error
    rows, width = (*loaded.embeddings.shape, 0, 0)[:2]
    for name, dtype, shape in (
        ("embeddings", "float32", (rows, width)),
        ("digests", "uint8", (rows, 32)),
        ("fingerprints", "uint8", (rows, 32)),
        ("targets", "int64", (rows,)),
    ):
        array = getattr(loaded, name)
        if (array.dtype.name, array.shape) != (dtype, shape):
            raise Corrupt(
                f"a shard of exemplars has {name} of {array.dtype} {array.shape}, "
                f"not {dtype} {shape}"
            )
    if ((loaded.targets < 0) | (loaded.targets >= len(loaded.labels))).any():
        raise Corrupt(f"a shard of exemplars has targets outside its {len(loaded.labels)} labels")
    return loaded


def fingerprint(pixels: Pixels) -> NDArray[np.uint8]:
    """Return 256 bits (32 bytes): where brightness rises from left to right in a 16 x 17 grid.

    Scaling, recompression and small changes of light flip a few of them (the "difference hash").
    """
    grey = Image.fromarray(pixels).convert("L").resize((17, 16), Image.Resampling.BOX)
    grid = np.asarray(grey, dtype=np.int16)
    return np.packbits(grid[:, 1:] > grid[:, :-1])


def _near_duplicates(fingerprints: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each row the smallest row that a chain of near-duplicates connects it with."""
    bits = np.unpackbits(fingerprints, axis=1).astype(np.float32)  # (n, 256)
    ones = bits.sum(axis=1)
    group = np.arange(len(bits))
    while True:  # once more than the longest chain has links: nearly always twice
        lower = group.copy()
        for start in range(0, len(bits), 1024):  # bounds the (rows, n) matrix
            block = slice(start, start + 1024)
            differing = ones[block, None] + ones[None, :] - 2 * (bits[block] @ bits.T)
            lower[block] = np.where(differing <= NEAR_DUPLICATE_BITS, group, len(bits)).min(axis=1)
        if (lower == group).all():
            return group
        group = lower


def _fold(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % FOLDS
