"""Calibration of a head's probabilities by temperature scaling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLOSE = 1e-5
"""Relative change of the temperature at convergence: the next Newton step would be its square."""

_BLOCK_ROWS = 1024
"""Rows per block; raising it uses more memory."""


def find_temperature(
    logits: NDArray[np.float32], targets: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Return the temperature of least weighted log loss (Guo et al., ICML 2017), 1/1000 to 1000.

    The target probability of a class with n images is (n + 1) / (n + 2) instead of 1 (Platt, 1999):
    otherwise a few correctly classified images would give unlimited confidence. The loss is convex
    in the inverse temperature, which is found by Newton's method: its derivatives are the mean
    logit under the model less the target logit, and the variance of the logits.
    """
    other_classes = logits.shape[1] - 1
    if not other_classes:
        return 1.0  # with one class, temperature has no effect
    z = logits - logits.max(axis=1, keepdims=True)
    right = z[np.arange(len(targets)), targets].astype(np.float64)
    smoothing = 1 / (np.bincount(targets)[targets] + 2)
    target_logit = (1 - smoothing) * right + smoothing * (
        z.sum(axis=1, dtype=np.float64) - right
    ) / other_classes
    inverse = 1.0
    for _ in range(30):
        mean, variance = _moments(z, inverse)
        slope = float(weights @ (mean - target_logit))
        curvature = float(weights @ variance)
        step = -slope / max(curvature * inverse, 1e-12)
        before, inverse = inverse, inverse * float(np.exp(np.clip(step, -1, 1)))
        inverse = float(np.clip(inverse, 1e-3, 1e3))
        if abs(inverse / before - 1) < CLOSE:
            break
    return 1 / inverse


def log_losses(
    logits: NDArray[np.float32], targets: NDArray[np.int64], temperature: float = 1.0
) -> NDArray[np.float32]:
    """Return the log loss of each row, (N,): the negative log probability of its target."""
    losses = np.empty(len(targets), dtype=np.float32)
    for start in range(0, len(targets), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        z = logits[block] / np.float32(temperature)
        top = z.max(axis=1)
        total = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
        losses[block] = total - z[np.arange(len(z)), targets[block]]
    return losses


def _moments(
    z: NDArray[np.float32], inverse: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and variance (N,) of each row of z under its softmax at 1 / ``inverse``."""
    mean, variance = np.empty(len(z)), np.empty(len(z))
    for start in range(0, len(z), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        part = z[block]
        p = np.exp(np.float32(inverse) * part)
        total = p.sum(axis=1)
        mean[block] = np.einsum("nc,nc->n", p, part) / total
        p *= np.square(part - mean[block, None].astype(np.float32))
        variance[block] = p.sum(axis=1) / total
    return mean, variance
