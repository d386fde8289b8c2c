"""How sure a head may be: the temperature that makes its probabilities honest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.head import softmax


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
    z = logits.astype(np.float64)
    right = z[np.arange(len(targets)), targets]
    doubt = 1 / (np.bincount(targets)[targets] + 2)
    aim = (1 - doubt) * right + doubt * (z.sum(axis=1) - right) / others
    inverse = 1.0
    for _ in range(30):
        p = softmax(inverse * z)
        mean = (p * z).sum(axis=1)
        slope = float(weights @ (mean - aim))
        curvature = float(weights @ (p * np.square(z - mean[:, None])).sum(axis=1))
        step = -slope / max(curvature * inverse, 1e-12)
        inverse = float(np.clip(inverse * np.exp(np.clip(step, -1, 1)), 1e-3, 1e3))
    return 1 / inverse


def log_losses(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return each row's negative log probability of its target, (N,)."""
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return np.asarray(total - logits[np.arange(len(targets)), targets])
