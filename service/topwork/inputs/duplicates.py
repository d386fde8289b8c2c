"""Near-duplicates: photos that show the same, though their bytes differ."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from topwork.inputs.image import Pixels

NEAR_DUPLICATE_BITS = 20
"""Fingerprints of one label that differ in at most so many of 256 bits are of one photo.

Measured: in 2,000 photos of flowers the pairs up to 18 bits were double uploads and the next at 25
neighbours of a series; of 300 X-rays, all alike to the eye, no two came below 23.
"""

ALIKE = 0.7
"""Correlation of fine detail from which on two thumbnails show the same.

Measured: recoloured or recompressed copies of photos of flowers had 0.76 to 0.95, all other pairs
at most 0.55; pairs of X-rays within NEAR_DUPLICATE_BITS, of different patients, 0.33 and 0.42.
"""

EXACT = 4096
"""Rows up to which every pair is looked at; of more, those that ``_bucketed`` yields.

That many take 0.02 s, which grows with their square.
"""

WINDOW = 64
"""Rows that one is compared with in each chunk's order, at most.

Measured with 100,000 fingerprints put together from parts of real ones, and 5,000 near-duplicates:
of flowers all pairs were found, in 0.6 s; of X-rays, all composed alike, 4,999, in 1.8 s, where a
window of 256 found all in 4.7 s. 100,000 equal fingerprints take 4.5 s.
"""

_CHUNKS = NEAR_DUPLICATE_BITS + 1


def fingerprint(pixels: Pixels) -> NDArray[np.uint8]:
    """Return 256 bits (32 bytes): where brightness rises from left to right in a 16 x 17 grid.

    Scaling, recompression and small changes of light flip a few of them (the "difference hash").
    """
    grey = Image.fromarray(pixels).convert("L").resize((17, 16), Image.Resampling.BOX)
    grid = np.asarray(grey, dtype=np.int16)
    return np.packbits(grid[:, 1:] > grid[:, :-1])


def near_duplicates(fingerprints: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each row the smallest row that a chain of near-duplicates connects it with.

    Of more than EXACT rows nearly all pairs are known: see WINDOW.
    """
    group = np.arange(len(fingerprints))
    for one, other, _ in _near(fingerprints):
        group = _joined(group, one, other)
    return group


def closest_pairs(fingerprints: NDArray[np.uint8], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return pairs (P, 2) of near-duplicates, in order, the smaller row first.

    Each row is paired with the nearest one of its own label and the nearest one of all others, the
    first of equally near ones: at most two pairs a row, however many copies there are. Of more than
    EXACT rows nearly all near-duplicates are found: see WINDOW.
    """
    rows = len(fingerprints)
    none = (NEAR_DUPLICATE_BITS + 1) * rows
    nearest = np.full((2, rows), none)  # of the own label, of the others: bits * rows + row
    for one, other, bits in _near(fingerprints):
        foreign = (targets[one] != targets[other]).astype(np.int64)
        np.minimum.at(nearest, (foreign, one), bits * rows + other)
        np.minimum.at(nearest, (foreign, other), bits * rows + one)
    found = np.argwhere(nearest < none)[:, 1]
    pairs = np.column_stack([found, nearest[nearest < none] % max(rows, 1)])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def alike(thumbnail: bytes, other: bytes) -> bool:
    """Return whether two thumbnails (JPEG files of one size) show the same, edge by edge.

    Fingerprints of pictures that are all composed alike, such as X-rays, come near each other by
    chance; fine detail does not. A thumbnail without any is like none.
    """
    return float(_detail(thumbnail) @ _detail(other)) >= ALIKE


def _detail(thumbnail: bytes) -> NDArray[np.float32]:
    """Return brightness less its surroundings', of mean 0 and length 1 (0 where there is none)."""
    grey = Image.open(io.BytesIO(thumbnail), formats=["JPEG"]).convert("L")
    blurred = grey.filter(ImageFilter.BoxBlur(2))
    detail = (np.asarray(grey, dtype=np.float32) - np.asarray(blurred, dtype=np.float32)).ravel()
    detail -= detail.mean()
    return np.asarray(detail / max(float(np.linalg.norm(detail)), 1e-6), dtype=np.float32)


_Pairs = Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]
"""Rows, other rows, and how many bits they differ in; in parts, some pairs more than once."""


def _near(fingerprints: NDArray[np.uint8]) -> _Pairs:
    """Yield the pairs of near-duplicates: all of them up to EXACT rows."""
    return _all_near(fingerprints) if len(fingerprints) <= EXACT else _bucketed(fingerprints)


def _all_near(fingerprints: NDArray[np.uint8]) -> _Pairs:
    signs = np.unpackbits(fingerprints, axis=1) * np.float32(2) - 1  # (n, 256)
    least = 256 - 2 * NEAR_DUPLICATE_BITS  # a product is 256, less 2 for each differing bit
    for start in range(0, len(signs), 256):  # bounds the (rows, n) matrices
        agreement = signs[start : start + 256] @ signs[start:].T
        one, other = np.divmod(np.flatnonzero(agreement >= least), agreement.shape[1])
        later = other > one
        one, other = one[later], other[later]
        bits = (256 - agreement[one, other].astype(np.int64)) // 2
        yield start + one, start + other, bits


def _bucketed(fingerprints: NDArray[np.uint8]) -> _Pairs:
    """Yield pairs that agree in all bits of a chunk and stand within WINDOW of each other there.

    Of more chunks than near-duplicates have differing bits one at least is equal (multi-index
    hashing: Norouzi, Punjani and Fleet, CVPR 2012). A chunk's bits are spread over the picture,
    as neighbours rise and fall together: that leaves 0.6 times the pairs. Rows with an equal chunk
    are sorted by further bits, so what the window leaves out are the unlikelier pairs, which
    other chunks, most of them equal in near-duplicates, may still find.
    """
    bits = np.unpackbits(fingerprints, axis=1).T.copy()  # (256, n)
    words = np.ascontiguousarray(fingerprints).view(np.uint64)  # (n, 4)
    spread = [np.arange(chunk, 256, _CHUNKS) for chunk in range(_CHUNKS)]
    for chunk, own in enumerate(spread):
        further = np.concatenate(spread[chunk:] + spread[:chunk])[:64]
        key = np.ascontiguousarray(np.packbits(bits[further], axis=0).T).view(">u8").ravel()
        order = np.argsort(key, kind="stable")
        bucket = key[order].astype(np.uint64) >> np.uint64(64 - len(own))
        columns = np.ascontiguousarray(words[order].T)  # (4, n)
        live = np.arange(len(order) - 1)
        for step in range(1, WINDOW + 1):
            live = live[: np.searchsorted(live, len(order) - step)]
            live = live[bucket[live] == bucket[live + step]]
            if not len(live):
                break
            near, differing = live, np.zeros(len(live), dtype=np.int64)
            for column in columns:  # nearly all are out after the first one
                differing = differing + _count_bits(column[near] ^ column[near + step])
                kept = differing <= NEAR_DUPLICATE_BITS
                near, differing = near[kept], differing[kept]
            if len(near):
                yield order[near], order[near + step], differing


def _count_bits(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how many bits of each 64-bit word are 1; NumPy counts them itself from 2.0 on."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words), dtype=np.int64)
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64)
    return np.asarray(bits.sum(axis=1), dtype=np.int64)


def _joined(
    group: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the groups with each row of ``one`` and its ``other`` in the same; names are rows."""
    while True:
        apart = group[one] != group[other]
        if not apart.any():
            return group
        one, other = one[apart], other[apart]
        pair = np.sort([group[one], group[other]], axis=0)
        np.minimum.at(group, pair[1], pair[0])
        while (group[group] != group).any():
            group = group[group]
