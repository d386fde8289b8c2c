"""The head: from an embedding to calibrated probabilities, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.bundle.drift import UnknownDistribution
from topwork.bundle.features import Normaliser

F = TypeVar("F", np.float32, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """M support points, stored in a projection to Q dimensions, and distances to them.

    |x - p|^2 = |x|^2 + |p|^2 - 2 x'p, relative to the centre. The points are in the projected
    subspace, but |x| is the full length, so features outside the subspace are far from all points.
    """

    centre: Float32Array
    """(D,)"""
    projection: Float32Array
    """(D, Q), orthonormal columns. All values of it and of ``points`` are exact in float16."""
    points: Float32Array
    """(M, Q)"""

    def __getitem__(self, points: NDArray[np.int64]) -> Support:
        """Return the support with the selected points only."""
        return replace(self, points=self.points[points])

    def distances(self, features: Float32Array) -> Float32Array:
        """Return squared distances (N, M) from features (N, D) to all points."""
        centred = features - self.centre
        found = (centred @ self.projection * np.float32(-2)) @ self.points.T
        found += np.square(self.points).sum(axis=1)
        found += np.square(centred).sum(axis=1)[:, None]
        return np.maximum(found, 0, out=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """RBF kernel to the points of a support: exp(-gamma * squared distance)."""

    support: Support
    gamma: float

    def __call__(self, features: Float32Array) -> Float32Array:
        """Return similarities (N, M) for features (N, D)."""
        return np.asarray(np.exp(np.float32(-self.gamma) * self.support.distances(features)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fourier:
    """M random Fourier features (Rahimi and Recht, NeurIPS 2007)."""

    projection: Float32Array
    """(D, M)"""
    phase: Float32Array
    """(M,)"""

    def __call__(self, features: Float32Array) -> Float32Array:
        """Return cosines (N, M) with a mean square of 1 / M, for features (N, D)."""
        waves = np.cos(features @ self.projection + self.phase)
        return np.asarray(waves * np.float32(np.sqrt(2 / len(self.phase))), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Linear scores of all classes, from the features or from an expansion of them."""

    weights: Float32Array
    """(C, M); M = D without an expansion."""
    bias: Float32Array
    """(C,)"""
    expansion: Kernel | Fourier | None = None

    def __call__(self, features: Float32Array) -> Float32Array:
        """Return scores (N, C) for features (N, D)."""
        return self.linear(features if self.expansion is None else self.expansion(features))

    def linear(self, expanded: Float32Array) -> Float32Array:
        """Return scores (N, C) for expanded features (N, M)."""
        return np.asarray(expanded @ self.weights.T + self.bias, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Out-of-distribution detector: probability that an image is of no known class.

    It is the greater of two probabilities: that of the highest logit, which is low between known
    classes, and that of the distance to the nearest support point, which is large far from all
    known classes.
    """

    support: Support
    logit_weight: float
    """Weight of the highest calibrated logit; below 0."""
    logit_bias: Float32Array
    """(C,), by the class of the highest logit: logits of some classes are usually higher."""
    distance_weight: float
    """Weight of the squared distance to the nearest point; above 0."""
    distance_bias: float
    threshold: float
    """An image is unknown if its probability is at least this."""
    distribution: UnknownDistribution | None = None
    """Probabilities of held-out images of the known labels; the head does not need it."""

    def probabilities(self, logits: Float32Array, distances: Float32Array) -> Float32Array:
        """Return probabilities (N,) for calibrated logits (N, C) and squared distances (N,)."""
        low = np.float32(self.logit_weight) * logits.max(axis=1)
        low += self.logit_bias[logits.argmax(axis=1)]
        far = np.float32(self.distance_weight) * distances + np.float32(self.distance_bias)
        score = np.maximum(np.maximum(low, far), np.float32(-80))
        return np.asarray(1 / (1 + np.exp(-score)), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Head: normalisation, scores, temperature calibration, out-of-distribution detector."""

    normaliser: Normaliser
    scorer: Scorer
    temperature: float
    """Divisor of the scores that gives calibrated logits."""
    unknown: Unknown | None = None
    """None if no detector could be fitted."""

    def logits(self, embeddings: Float32Array) -> Float32Array:
        """Return calibrated logits (N, C) for embeddings (N, D), rows in input order."""
        return self.scorer(self.normaliser(embeddings)) * np.float32(1 / self.temperature)

    def probabilities(self, embeddings: Float32Array) -> Float32Array:
        """Return probabilities (N, C) for embeddings (N, D), as the exported graph does."""
        return softmax(self.logits(embeddings))

    def unknown_probabilities(self, embeddings: Float32Array) -> Float32Array:
        """Return the unknown probability (N,) for embeddings (N, D); 0 without a detector."""
        if self.unknown is None:
            return np.zeros(len(embeddings), dtype=np.float32)
        nearest = self.unknown.support.distances(self.normaliser(embeddings)).min(axis=1)
        return self.unknown.probabilities(self.logits(embeddings), nearest)


def softmax(logits: NDArray[F]) -> NDArray[F]:
    """Return the softmax over the last axis, with the dtype of ``logits``."""
    shifted: NDArray[F] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted
