"""Calibration of a head's probabilities by temperature scaling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.features import TINY

FULL_SET = 0.9
"""Temperature of a head of all images relative to that of the heads of cross-validation.

Raising it makes heads more timid. The heads of cross-validation learn from four fifths of the
images, so they are less accurate than the head that is served.
"""

CLOSE = 1e-5
"""Relative change of the temperature at convergence: the next Newton step would be its square."""

_USUAL_SPREAD = 2.0
"""Usual standard deviation of the margins of calibrated logits.

With 5 to 20 images a class, the temperature that was best on other images gave 1.3 to 2.1 for 2
classes, 2.0 to 2.7 for 5, and 2.7 to 4.2 for 20, which have too many images to need a prior.
"""

_PRIOR_DEVIATION = 0.3
"""Standard deviation of the logarithm of the temperature around the usual one.

Raising it lets few images decide. 0.2 and 0.4 changed the mean calibration error by 0.001.
"""

_MIN_QUALITY = 0.1
"""Smallest mean difference over its standard deviation; useless scores have none."""

_MIN_SPREAD = 1e-3
"""Standard deviation of the margins, relative to the greatest, that is too small for a prior."""

_BLOCK_ROWS = 1024
"""Rows per block; raising it uses more memory."""


def find_temperature(
    logits: NDArray[np.float32], targets: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Return the temperature of least weighted log loss (Guo et al., ICML 2017), 1/1000 to 1000.

    Two corrections keep few images from deciding alone:

    * With n images the target probability is (n + 1) / (n + 2) instead of 1 (Platt, 1999):
      otherwise a few correctly classified images would give unlimited confidence. n counts the
      images of all classes, which share the temperature; with the images of each class for n,
      heads of many small classes were far too timid.
    * The logarithm of the temperature has a normal prior; see ``_prior``. It weighs as much as a
      few images.

    The loss is convex in the inverse temperature, which is found by Newton's method: its
    derivatives are the mean logit under the model less the target logit, and the variance of the
    logits.
    """
    other_classes = logits.shape[1] - 1
    if not other_classes:
        return 1.0  # with one class, temperature has no effect
    z = logits - logits.max(axis=1, keepdims=True)
    right = z[np.arange(len(targets)), targets].astype(np.float64)
    smoothing = 1 / (np.count_nonzero(weights) + 2)
    target_logit = (1 - smoothing) * right + smoothing * (
        z.sum(axis=1, dtype=np.float64) - right
    ) / other_classes
    usual, certainty = _prior(z, right, targets, weights)
    inverse = 1.0
    for _ in range(50):
        mean, variance = _moments(z, inverse)
        slope = float(weights @ (mean - target_logit)) * inverse
        curvature = float(weights @ variance) * inverse**2 + max(slope, 0.0) + certainty
        slope += certainty * float(np.log(inverse / usual))
        step = -slope / max(curvature, 1e-12)
        before, inverse = inverse, inverse * float(np.exp(np.clip(step, -1, 1)))
        inverse = float(np.clip(inverse, 1e-3, 1e3))
        if abs(inverse / before - 1) < CLOSE:
            break
    return 1 / inverse


def _prior(
    z: NDArray[np.float32],
    right: NDArray[np.float64],
    targets: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> tuple[float, float]:
    """Return the usual inverse temperature and the inverse variance of its logarithm.

    A margin is the score of the right class less the highest other one, a difference is that less
    any other one. After division by the usual temperature, margins have a standard deviation of
    ``_USUAL_SPREAD``. If the mean difference is below its standard deviation, the scores tell the
    classes apart so badly that they have proportionally less: for two normally distributed classes
    the spread of exact logits is twice the mean over the standard deviation.
    """
    evaluated = weights > 0
    others = z.copy()
    others[np.arange(len(targets)), targets] = -np.inf
    margins = (right - others.max(axis=1))[evaluated]
    spread = float(margins.std()) if len(margins) else 0.0
    if spread <= _MIN_SPREAD * float(np.abs(margins).max(initial=0.0)):
        return 1.0, 0.0
    count, sums = z.shape[1], z.sum(axis=1, dtype=np.float64)
    first = (count * right - sums)[evaluated].mean() / (count - 1)
    squares = count * right**2 - 2 * right * sums + np.einsum("nc,nc->n", z, z)
    deviation = np.sqrt(max(squares[evaluated].mean() / (count - 1) - first**2, TINY))
    quality = float(np.clip(first / deviation, _MIN_QUALITY, 1))
    return _USUAL_SPREAD * quality / spread, _PRIOR_DEVIATION**-2


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
