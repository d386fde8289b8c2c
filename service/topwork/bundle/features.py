"""Features: normalised embeddings, the input of a head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.bundle.recipe import Normalisation

TINY = 1e-12
"""Smallest divisor; avoids a division by 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normaliser:
    """Normalisation of embeddings, with its parameters fitted to the training set.

    Each kind gives features of a mean squared length of about 1, so that a regularisation strength
    means the same for all of them:

    * ``none``: the embedding, divided by the root mean square length
    * ``l2``: the embedding, divided by its own length
    * ``sqrt_l2``: the signed square root of the embedding, divided by its own length. The root
      reduces the few large entries of a pooled embedding (Perronnin et al., ECCV 2010).
    * ``standardise``: each column with mean 0 and variance 1 / D. A variance is estimated from the
      rows and, like one more row, the mean variance of all columns: some columns of a few images
      are constant by chance, and would be arbitrarily large for other images.
    """

    kind: Normalisation
    centre: Float32Array
    """(D,), subtracted; 0 except for ``standardise``."""
    scale: Float32Array
    """(D,), factor of each column; 1 for ``l2`` and ``sqrt_l2``."""

    def __call__(self, embeddings: Float32Array) -> Float32Array:
        """Return features (N, D) for embeddings (N, D)."""
        features = embeddings
        if self.kind == "sqrt_l2":
            features = np.sign(features) * np.sqrt(np.abs(features))
        if self.kind in {"l2", "sqrt_l2"}:
            length = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
            return np.asarray(features / np.maximum(length, np.float32(TINY)), dtype=np.float32)
        return np.asarray((features - self.centre) * self.scale, dtype=np.float32)


def make(kind: Normalisation, embeddings: Float32Array) -> Normaliser:
    """Fit the normalisation ``kind`` to embeddings (N, D); their order does not matter."""
    rows, width = embeddings.shape
    mean, variance, square = np.zeros(width), np.zeros(width), 0.0
    if kind == "none":
        square = float(np.square(embeddings, dtype=np.float64).sum(axis=1).mean())
    elif kind == "standardise":
        mean = embeddings.mean(axis=0, dtype=np.float64)
        variance = embeddings.var(axis=0, dtype=np.float64)
    return make_of_moments(kind, rows, mean, variance, square)


def make_of_moments(
    kind: Normalisation,
    rows: int,
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    square: float,
) -> Normaliser:
    """Return the normalisation ``kind`` of rows with these moments of their columns (D,).

    ``square`` is the mean squared length; only ``none`` uses it, and only ``standardise`` the rest.
    """
    width = len(mean)
    centre = np.zeros(width)
    scale = np.ones(width)
    if kind == "none":
        scale /= np.sqrt(max(square, TINY))
    elif kind == "standardise":
        centre = mean
        deviation = np.sqrt((rows * variance + variance.mean()) / (rows + 1))
        # A nearly constant column carries no information: do not amplify its rounding errors.
        least = 1e-3 * deviation.max() + 1e-6 * np.abs(centre).max() + TINY
        scale /= np.maximum(deviation, least) * np.sqrt(width)
    return Normaliser(kind=kind, centre=centre.astype(np.float32), scale=scale.astype(np.float32))
