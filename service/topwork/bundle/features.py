"""Features: the normalised embeddings that a head works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topwork.arrays import Float32Array
from topwork.bundle.recipe import Normalisation

TINY = 1e-12
"""The least length that is divided by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normaliser:
    """One normalisation, with what it took from the embeddings that it was made for.

    Features of all kinds have a mean squared length of about 1, so strengths mean the same:

    * ``none``: the embedding, divided by the root mean square length
    * ``l2``: divided by its own length
    * ``sqrt_l2``: its signed square root, divided by its own length. The root tames the few large
      entries of a pooled embedding (Perronnin et al., ECCV 2010).
    * ``standardise``: each column with mean 0 and variance 1 / D
    """

    kind: Normalisation
    centre: Float32Array
    """(D,), subtracted; 0 but for ``standardise``."""
    scale: Float32Array
    """(D,), multiplied with; 1 for those that divide by a length of their own."""

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
    """Return the normalisation ``kind`` for embeddings (N, D): a function of their set."""
    width = embeddings.shape[1]
    centre = np.zeros(width)
    scale = np.ones(width)
    if kind == "none":
        lengths = np.square(embeddings, dtype=np.float64).sum(axis=1)
        scale /= np.sqrt(max(lengths.mean(), TINY))
    elif kind == "standardise":
        centre = embeddings.mean(axis=0, dtype=np.float64)
        deviation = embeddings.std(axis=0, dtype=np.float64)
        # A column that hardly moves says nothing: it must not be blown up, nor may rounding.
        least = 1e-3 * deviation.max() + 1e-6 * np.abs(centre).max() + TINY
        scale /= np.maximum(deviation, least) * np.sqrt(width)
    return Normaliser(kind=kind, centre=centre.astype(np.float32), scale=scale.astype(np.float32))
