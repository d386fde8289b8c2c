"""Which photos show the same, though their bytes differ."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from topwork.bundle.image import Pixels

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


def fingerprint(pixels: Pixels) -> NDArray[np.uint8]:
    """Return 256 bits (32 bytes): where brightness rises from left to right in a 16 x 17 grid.

    Scaling, recompression and small changes of light flip a few of them (the "difference hash").
    """
    grey = Image.fromarray(pixels).convert("L").resize((17, 16), Image.Resampling.BOX)
    grid = np.asarray(grey, dtype=np.int16)
    return np.packbits(grid[:, 1:] > grid[:, :-1])


def near_duplicates(fingerprints: NDArray[np.uint8]) -> NDArray[np.int64]:
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


def closest_pairs(fingerprints: NDArray[np.uint8], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return pairs (P, 2) of near-duplicates, in order, the smaller row first.

    Each row is paired with the nearest one of its own label and the nearest one of all others: at
    most two pairs a row, however many copies there are.
    """
    signs = np.unpackbits(fingerprints, axis=1) * np.float32(2) - 1  # (n, 256)
    least = 256 - 2 * NEAR_DUPLICATE_BITS  # a product is 256, less 2 for each differing bit
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(signs), 256):  # bounds the (rows, n) matrices
        agreement = signs[start : start + 256] @ signs.T
        here = np.arange(len(agreement))
        agreement[here, start + here] = -np.inf  # no row is its own near-duplicate
        some = here[agreement.max(axis=1) >= least]  # few, in most sets
        own = targets[start + some, None] == targets[None, :]
        for wanted in (own, ~own):
            among = np.where(wanted, agreement[some], -np.inf)
            near = among.max(axis=1) >= least
            found.append(np.column_stack([start + some[near], among.argmax(axis=1)[near]]))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def alike(thumbnail: bytes, other: bytes) -> bool:
    """Return whether two thumbnails (JPEG files of one size) show the same, edge by edge.

    Fingerprints of pictures that are all composed alike, such as X-rays, come near each other by
    chance; fine detail does not. A thumbnail without any is like none.
    """
    return float(_detail(thumbnail) @ _detail(other)) >= ALIKE


def _detail(thumbnail: bytes) -> NDArray[np.float32]:
    """Return brightness less its surroundings', of mean 0 and length 1 (0 where there is none)."""
    grey = Image.open(io.BytesIO(thumbnail)).convert("L")
    blurred = grey.filter(ImageFilter.BoxBlur(2))
    detail = (np.asarray(grey, dtype=np.float32) - np.asarray(blurred, dtype=np.float32)).ravel()
    detail -= detail.mean()
    return np.asarray(detail / max(float(np.linalg.norm(detail)), 1e-6), dtype=np.float32)
