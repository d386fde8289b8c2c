"""Temperature scaling: the calibration of a head's probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLOSE = 1e-5
"""Relative change of the temperature that is none: Newton's next would be that squared."""

_ROWS = 1024
"""Rows that are worked on at once."""


def find_temperature(
    logits: NDArray[np.float32], targets: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Return the temperature of least weighted log loss (Guo et al., ICML 2017), 1/1000 to 1000.

    A class with n images aims at (n + 1) / (n + 2) rather than at certainty (Platt, 1999): without
    that a few images, all told apart, would end in boundless confidence. The loss is convex in the
    inverse temperature, on which these are Newton steps: its derivatives are the logits' mean under
    the model, less the aim, and their variance.
    """
    others = logits.shape[1] - 1
    if not others:
        return 1.0  # one class is certain at any temperature
    z = logits - logits.max(axis=1, keepdims=True)
    right = z[np.arange(len(targets)), targets].astype(np.float64)
    doubt = 1 / (np.bincount(targets)[targets] + 2)
    aim = (1 - doubt) * right + doubt * (z.sum(axis=1, dtype=np.float64) - right) / others
    inverse = 1.0
    for _ in range(30):
        mean, variance = _moments(z, inverse)
        slope = float(weights @ (mean - aim))
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
    """Return each row's negative log probability of its target, (N,), at a temperature."""
    losses = np.empty(len(targets), dtype=np.float32)
    for start in range(0, len(targets), _ROWS):
        block = slice(start, start + _ROWS)
        z = logits[block] / np.float32(temperature)
        top = z.max(axis=1)
        total = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
        losses[block] = total - z[np.arange(len(z)), targets[block]]
    return losses


def _moments(
    z: NDArray[np.float32], inverse: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and variance (N,) of each row of z under its softmax at a temperature."""
    mean, variance = np.empty(len(z)), np.empty(len(z))
    for start in range(0, len(z), _ROWS):
        block = slice(start, start + _ROWS)
        part = z[block]
        p = np.exp(np.float32(inverse) * part)
        total = p.sum(axis=1)
        mean[block] = np.einsum("nc,nc->n", p, part) / total
        p *= np.square(part - mean[block, None].astype(np.float32))
        variance[block] = p.sum(axis=1) / total
    return mean, variance
