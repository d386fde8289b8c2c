"""Near-duplicate detection: photos with the same content and different bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from topwork.inputs.image import Pixels
from topwork.inputs.thumbnail import SIDE

NEAR_DUPLICATE_BITS = 20
"""Raising it makes photos with more differing bits, of the 256 of a fingerprint, near-duplicates.

Measured: in 2,000 photos of flowers, pairs up to 18 bits were double uploads, and the next pair, at
25, neighbours of a series; of 300 similar X-rays no pair had less than 23.
"""

ALIKE = 0.7
"""Raising it makes fewer thumbnails count as alike: the least correlation of fine detail.

Measured: recoloured or recompressed copies of photos of flowers had 0.76 to 0.95, all other pairs
at most 0.55; pairs of X-rays within NEAR_DUPLICATE_BITS, of different patients, 0.33 and 0.42.
"""

EXACT_ROWS = 4096
"""Raising it makes larger sets compare all pairs, in quadratic time; this many rows take 0.02 s."""

WINDOW = 64
"""Raising it finds more pairs above EXACT_ROWS, in more time: comparisons per row and chunk.

Measured with 100,000 fingerprints, recombined from parts of real ones, and 5,000 near-duplicates:
of flowers all pairs were found, in 0.6 s; of X-rays, all of similar composition, 4,999, in 1.8 s; a
window of 256 found all in 4.7 s. 100,000 equal fingerprints take 4.5 s.
"""

_BLOCK_ROWS = 2**15
"""Rows that are compared at once: their hashes are in the processor's cache."""

_CHUNKS = NEAR_DUPLICATE_BITS + 1
_JPEG = b"\xff\xd8"


def fingerprint(pixels: Pixels) -> NDArray[np.uint8]:
    """Return the difference hash, 256 bits: 1 for each rise of brightness along a 16 x 17 grid.

    Scaling, recompression and small changes of light flip a few bits.
    """
    grey = Image.fromarray(pixels).convert("L").resize((17, 16), Image.Resampling.BOX)
    grid = np.asarray(grey, dtype=np.int16)
    return np.packbits(grid[:, 1:] > grid[:, :-1])


def near_duplicates(fingerprints: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each row the smallest row of its connected component of near-duplicates.

    Above EXACT_ROWS rows the search is approximate: see WINDOW.
    """
    group = np.arange(len(fingerprints))
    for left, right, _ in _near_pairs(fingerprints):
        group = _merge_groups(group, left, right)
    return group


def closest_pairs(
    fingerprints: NDArray[np.uint8], targets: NDArray[np.int64], *, threads: int = 1
) -> NDArray[np.int64]:
    """Return sorted pairs (P, 2) of near-duplicates, the smaller row first.

    Each row is paired with the nearest row of its own label and the nearest row of other labels,
    the smallest in a tie: at most two pairs per row, however many copies there are. Above
    EXACT_ROWS rows the search is approximate, see WINDOW, and uses ``threads``, whose number does
    not change the result.
    """
    rows = len(fingerprints)
    unpaired = (NEAR_DUPLICATE_BITS + 1) * rows
    nearest = np.full((2, rows), unpaired)  # of own label, of other labels: bits * rows + row
    for left, right, bits in _near_pairs(fingerprints, threads):
        foreign = (targets[left] != targets[right]).astype(np.int64)
        np.minimum.at(nearest, (foreign, left), bits * rows + right)
        np.minimum.at(nearest, (foreign, right), bits * rows + left)
    paired = np.argwhere(nearest < unpaired)[:, 1]
    pairs = np.column_stack([paired, nearest[nearest < unpaired] % max(rows, 1)])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def alike(thumbnail: bytes, other: bytes) -> bool:
    """Return True if two thumbnails (JPEG files of any sizes) have the same fine detail.

    Pictures of similar composition, such as X-rays, may have close fingerprints by chance, but
    different fine detail. A thumbnail without detail is like no other. Previews that are no JPEG
    files, those of texts and audio, are alike: their fingerprints alone decide.
    """
    if not (thumbnail.startswith(_JPEG) and other.startswith(_JPEG)):
        return True
    return float(_detail(thumbnail) @ _detail(other)) >= ALIKE


def _detail(thumbnail: bytes) -> NDArray[np.float32]:
    """Return brightness minus blurred brightness, with mean 0 and norm 1 (0 without any detail)."""
    grey = Image.open(io.BytesIO(thumbnail), formats=["JPEG"]).convert("L")
    if grey.size != (SIDE, SIDE):  # ALIKE was measured with this size
        grey = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
    blurred = grey.filter(ImageFilter.BoxBlur(2))
    detail = (np.asarray(grey, dtype=np.float32) - np.asarray(blurred, dtype=np.float32)).ravel()
    detail -= detail.mean()
    return np.asarray(detail / max(float(np.linalg.norm(detail)), 1e-6), dtype=np.float32)


_Pairs = Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]
"""Left rows, right rows and Hamming distances, in chunks; pairs may repeat."""


def _near_pairs(fingerprints: NDArray[np.uint8], threads: int = 1) -> _Pairs:
    """Yield the pairs of near-duplicates, all of them up to EXACT_ROWS rows."""
    if len(fingerprints) <= EXACT_ROWS:
        return _exact_pairs(fingerprints)
    return _bucketed_pairs(fingerprints, threads)


def _exact_pairs(fingerprints: NDArray[np.uint8]) -> _Pairs:
    signs = np.unpackbits(fingerprints, axis=1) * np.float32(2) - 1  # (n, 256)
    least = 256 - 2 * NEAR_DUPLICATE_BITS  # a product is 256, less 2 for each differing bit
    for start in range(0, len(signs), 256):  # bounds the (rows, n) matrices
        agreement = signs[start : start + 256] @ signs[start:].T
        left, right = np.divmod(np.flatnonzero(agreement >= least), agreement.shape[1])
        later = right > left
        left, right = left[later], right[later]
        bits = (256 - agreement[left, right].astype(np.int64)) // 2
        yield start + left, start + right, bits


def _bucketed_pairs(fingerprints: NDArray[np.uint8], threads: int) -> _Pairs:
    """Yield pairs that agree in all bits of a chunk and are within WINDOW of each other there.

    There are more chunks than near-duplicates have differing bits, so at least one chunk is equal
    (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012). A chunk's bits are spread over the
    picture, as neighbouring bits correlate: that leaves 0.6 times the pairs. Rows with an equal
    chunk are sorted by further bits, so the window omits unlikely pairs, which other chunks may
    still find.
    """
    bits = np.unpackbits(fingerprints, axis=1).T.copy()  # (256, n)
    words = np.ascontiguousarray(fingerprints).view(np.uint64)  # (n, 4)
    spread = [np.arange(chunk, 256, _CHUNKS) for chunk in range(_CHUNKS)]

    def search(chunk: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        further = np.concatenate(spread[chunk:] + spread[:chunk])[:64]
        packed = np.ascontiguousarray(np.packbits(bits[further], axis=0).T)
        key = packed.view(">u8").ravel().astype(np.uint64)  # sorts faster in native byte order
        order = np.argsort(key, kind="stable")
        shift = np.uint64(64 - len(spread[chunk]))
        bucket = (key[order] >> shift).astype(np.uint16)
        columns = np.ascontiguousarray(words[order].T)  # (4, n)
        found = []
        for start in range(0, len(order), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS + WINDOW)
            for left, right, differing in _near_in_order(bucket[rows], columns[:, rows]):
                found.append((order[start + left], order[start + right], differing))
        return found

    if threads == 1:
        for chunk in range(_CHUNKS):
            yield from search(chunk)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for found in pool.map(search, range(_CHUNKS)):
                yield from found


def _near_in_order(bucket: NDArray[np.uint16], columns: NDArray[np.uint64]) -> _Pairs:
    """Yield pairs of the first _BLOCK_ROWS rows with the next WINDOW rows of their bucket."""
    first, *others = columns
    for step in range(1, min(WINDOW, len(bucket) - 1) + 1):
        rows = min(_BLOCK_ROWS, len(bucket) - step)
        candidates = bucket[:rows] == bucket[step : step + rows]
        if not candidates.any():
            return
        # The first column rules nearly all out; whole columns are faster than selected rows.
        bits = _count_bits(first[:rows] ^ first[step : step + rows])
        candidates &= bits <= NEAR_DUPLICATE_BITS
        near = np.flatnonzero(candidates)
        differing = bits[near].astype(np.int64)
        for column in others:
            differing = differing + _count_bits(column[near] ^ column[near + step])
            is_near = differing <= NEAR_DUPLICATE_BITS
            near, differing = near[is_near], differing[is_near]
        if len(near):
            yield near, near + step, differing


def _count_bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the number of 1 bits of each 64-bit word; NumPy 2.0 and later can count them."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words), dtype=np.uint8)
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64)
    return np.asarray(bits.sum(axis=1), dtype=np.uint8)


def _merge_groups(
    group: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the groups after each pair is united; a group is named by its smallest row."""
    while True:
        apart = group[left] != group[right]
        if not apart.any():
            return group
        left, right = left[apart], right[apart]
        pair = np.sort([group[left], group[right]], axis=0)
        np.minimum.at(group, pair[1], pair[0])
        while (group[group] != group).any():
            group = group[group]
