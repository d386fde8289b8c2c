"""The head: from an embedding to calibrated probabilities, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.bundle.features import Normaliser

F = TypeVar("F", np.float32, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """M known features, seen in a few directions, and how far others are from them.

    |x - p|^2 = |x|^2 + |p|^2 - 2 x'p, all seen from the centre. The points lie in the directions,
    but |x| is the whole length: so what points in no known direction is far from all.
    """

    centre: Float32Array
    """(D,)"""
    projection: Float32Array
    """(D, Q), orthogonal columns of length 1. Its values and the points' fit into 16 bits."""
    points: Float32Array
    """(M, Q)"""

    def __getitem__(self, points: NDArray[np.int64]) -> Support:
        """Return the support of some points."""
        return replace(self, points=self.points[points])

    def distances(self, features: Float32Array) -> Float32Array:
        """Return squared distances (N, M) between features (N, D) and all points."""
        centred = features - self.centre
        found = (centred @ self.projection * np.float32(-2)) @ self.points.T
        found += np.square(self.points).sum(axis=1)
        found += np.square(centred).sum(axis=1)[:, None]
        return np.maximum(found, 0, out=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Similarities to all points of a support: exp(-gamma * squared distance)."""

    support: Support
    gamma: float

    def __call__(self, features: Float32Array) -> Float32Array:
        """Return similarities (N, M) for features (N, D)."""
        return np.asarray(np.exp(np.float32(-self.gamma) * self.support.distances(features)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fourier:
    """M waves in random directions (Rahimi and Recht, NeurIPS 2007)."""

    projection: Float32Array
    """(D, M)"""
    phase: Float32Array
    """(M,)"""

    def __call__(self, features: Float32Array) -> Float32Array:
        """Return waves (N, M), of mean square 1 / M, for features (N, D)."""
        waves = np.cos(features @ self.projection + self.phase)
        return np.asarray(waves * np.float32(np.sqrt(2 / len(self.phase))), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores of all classes: linear in the features, or in an expansion of them."""

    weights: Float32Array
    """(C, M); M is D without an expansion."""
    bias: Float32Array
    """(C,)"""
    expansion: Kernel | Fourier | None = None

    def __call__(self, features: Float32Array) -> Float32Array:
        """Return scores (N, C) for features (N, D)."""
        return self.linear(features if self.expansion is None else self.expansion(features))

    def linear(self, expanded: Float32Array) -> Float32Array:
        """Return scores (N, C) for what the features were expanded to, (N, M)."""
        return np.asarray(expanded @ self.weights.T + self.bias, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """How likely an image is of no known class: from its highest logit and its nearest neighbour.

    A logistic regression on the two: logits tell what lies between known classes, neighbours what
    lies far from all.
    """

    support: Support
    bias: float
    logit_weight: float
    """At most 0: of the highest calibrated logit."""
    logit_limit: float
    """A higher one says no more: far away a linear head is boundlessly sure."""
    distance_weight: float
    """At least 0: of the squared distance to the nearest point."""
    threshold: float
    """From this probability on an image is called unknown."""

    def probabilities(self, logits: Float32Array, distances: Float32Array) -> Float32Array:
        """Return (N,) for calibrated logits (N, C) and nearest squared distances (N,)."""
        highest = np.minimum(logits.max(axis=1), np.float32(self.logit_limit))
        score = (
            np.float32(self.logit_weight) * highest
            + np.float32(self.distance_weight) * distances
            + np.float32(self.bias)
        )
        return np.asarray(1 / (1 + np.exp(-np.maximum(score, np.float32(-80)))), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """All that a revision adds to its backbone."""

    normaliser: Normaliser
    scorer: Scorer
    temperature: float
    """What the scores are divided by to become logits."""
    unknown: Unknown | None = None
    """None where no such thing could be learnt."""

    def logits(self, embeddings: Float32Array) -> Float32Array:
        """Return calibrated logits (N, C) for embeddings (N, D), rows in input order."""
        return self.scorer(self.normaliser(embeddings)) * np.float32(1 / self.temperature)

    def probabilities(self, embeddings: Float32Array) -> Float32Array:
        """Return probabilities (N, C) for embeddings (N, D): what the exported graph gives."""
        return softmax(self.logits(embeddings))

    def unknown_probabilities(self, embeddings: Float32Array) -> Float32Array:
        """Return (N,) for embeddings (N, D); what cannot be told is 0."""
        if self.unknown is None:
            return np.zeros(len(embeddings), dtype=np.float32)
        nearest = self.unknown.support.distances(self.normaliser(embeddings)).min(axis=1)
        return self.unknown.probabilities(self.logits(embeddings), nearest)


def softmax(logits: NDArray[F]) -> NDArray[F]:
    """Return the softmax over the last axis, in the type of ``logits``."""
    shifted: NDArray[F] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted
