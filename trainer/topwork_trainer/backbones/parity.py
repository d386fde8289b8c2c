"""Parity check: embeddings of structured images from ONNX Runtime and from a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.errors import TopworkError

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Maps images (N, crop, crop, 3), RGB, to embeddings (N, D)."""


class ExportError(TopworkError):
    """The backbone cannot be exported, or ONNX Runtime gives other embeddings."""

    reason = "EXPORT_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Difference between the reference's and ONNX Runtime's embeddings of the same images."""

    images: int
    max_abs_difference: float
    """Largest difference of an element of an embedding."""
    min_cosine: float
    """Smallest cosine similarity of the two embeddings of an image."""


def check_parity(
    expected: NDArray[np.float32], actual: NDArray[np.float32], *, reference: str = "torch"
) -> Parity:
    """Compare embeddings (N, D) of a reference with those from ONNX Runtime on the same images.

    Raises ExportError if an element differs by more than 1e-4 of the largest (float32 on CPU stays
    within 4e-6), if a cosine is below 0.99999, or if a random head with 1,000 classes predicts
    another class for an image.
    """
    if expected.shape != actual.shape:
        raise ExportError(f"ONNX Runtime gives shape {actual.shape}, {reference} {expected.shape}")
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    difference = float(np.abs(a - b).max())
    limit = 1e-4 * float(np.abs(a).max())
    dots, lengths = np.sum(a * b, axis=1), np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1)  # a small black image may have an embedding of zeros
    cosine = float(np.where(equal, 1, dots / np.where(equal, 1, lengths)).min())
    head = np.random.default_rng(0).standard_normal((a.shape[1], 1000))
    changed = int(np.sum((a @ head).argmax(axis=1) != (b @ head).argmax(axis=1)))
    # Negated, so that NaN fails the check.
    if not (difference <= limit and cosine >= 0.99999 and changed == 0):
        raise ExportError(
            f"ONNX Runtime disagrees with {reference} on {len(a)} images: an element differs by"
            f" {difference:.3g} (limit {limit:.3g}), a cosine is {cosine:.6f} (limit 0.99999),"
            f" {changed} images change class"
        )
    return Parity(images=len(a), max_abs_difference=difference, min_cosine=cosine)


def structured_images(side: int) -> NDArray[np.uint8]:
    """Return images (8, side, side, 3): black, white, three with soft and three with hard stripes.

    Noise would be a weaker test: it averages out, while graphs differ at edges and extremes.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side][..., None] / side
    cycles_y, cycles_x, phase = rng.uniform(-16, 16, (3, 8, 1, 1, 3))
    waves = np.sin(2 * np.pi * (cycles_y * y + cycles_x * x + phase))
    waves[0], waves[1], waves[5:] = -1, 1, np.sign(waves[5:])
    images: NDArray[np.uint8] = (127.5 + 127.5 * waves).astype(np.uint8)
    return images
