"""Evidence of each position of an image for a label: a map whose sum is the label's logit.

An embedding is the mean of a feature map, e = mean_p f_p, so a logit that is linear in it is a sum
over positions. Normalisations are shared out in the same way. A head that is not linear is replaced
by a linear one, which is right near the embedding and leaves a rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.bundle.features import TINY, Normaliser
from topwork.bundle.head import Fourier, Head, Kernel, Scorer
from topwork.serving.explanation.features import Features


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Sum of a logit: ``map.sum() + bias + rest == logit``."""

    map: NDArray[np.float64]
    """(rows, columns), the share of each position."""
    bias: float
    """Share that does not depend on the image."""
    rest: float
    """Share that the map does not explain; 0, but for rounding, if the head is linear."""
    logit: float


@dataclass(frozen=True, slots=True)
class _Slopes:
    """Normalised features as z = slope * e + level + centre, in which only e has positions."""

    slope: NDArray[np.float64]
    level: NDArray[np.float64]
    centre: NDArray[np.float64]
    """The part that is the same for all images."""


def evidence(head: Head, features: Features, label: int, logit: float) -> Evidence:
    """Return the evidence for a label, whose calibrated logit is ``logit``."""
    embedding = features.embedding
    slopes = _slopes(head.normaliser, features)
    point = head.normaliser(embedding[None])[0]
    weights = direction(head.scorer, point, label).astype(np.float64)
    found = features.spread(weights * slopes.slope)
    found += float(weights @ slopes.level) / found.size
    bias = float(head.scorer.bias[label])
    if head.scorer.expansion is None:
        bias += float(weights @ slopes.centre)
    return Evidence(map=found, bias=bias, rest=logit - bias - float(found.sum()), logit=logit)


def direction(scorer: Scorer, point: Float32Array, label: int) -> Float32Array:
    """Return w (D,), so that ``w @ point`` is a label's score at ``point`` (D,), but for its bias.

    For an RBF kernel, k_m = exp(-gamma |z - p_m|^2), it is sum_m w_m k_m p_m: each similarity
    counts as far as the product z'p_m. That is the gradient / (2 gamma) for z of a constant length.
    The plain gradient is 0 at an exemplar, and near one it points at what differs: seen on photos,
    it misses the object. Fourier features approximate the same kernel.
    """
    weights, expansion = scorer.weights[label], scorer.expansion
    if isinstance(expansion, Kernel):
        shares = weights * expansion(point[None])[0]
        support = expansion.support
        return np.asarray(
            support.projection @ (support.points.T @ shares) + support.centre * shares.sum()
        )
    if isinstance(expansion, Fourier):
        projection = expansion.projection
        waves = point @ projection + expansion.phase
        height = np.float32(np.sqrt(2 / len(expansion.phase)))
        gradient = -height * (projection @ (weights * np.sin(waves)))
        score = height * (weights @ np.cos(waves))
        twice_gamma = np.square(projection).mean()  # of a kernel with normal frequencies
        return np.asarray(gradient / twice_gamma + score * point)
    return np.asarray(weights)


def _slopes(normaliser: Normaliser, features: Features) -> _Slopes:
    embedding = features.embedding.astype(np.float64)
    nothing = np.zeros(len(embedding))
    if normaliser.kind not in {"l2", "sqrt_l2"}:
        scale = normaliser.scale.astype(np.float64)
        return _Slopes(scale, nothing, -normaliser.centre * scale)
    if normaliser.kind == "l2":
        length = max(float(np.linalg.norm(embedding)), TINY)
        return _Slopes(np.full(len(embedding), 1 / length), nothing, nothing)
    # The root of a feature is shared out like the feature. Where values of both signs cancel out,
    # the shares are bounded by the values' magnitudes, and all positions get the same level.
    root = np.sqrt(np.abs(embedding))
    length = max(float(np.linalg.norm(root)), TINY)
    magnitudes = features.magnitudes().astype(np.float64)
    slope = np.divide(root, magnitudes, out=nothing.copy(), where=magnitudes > TINY) / length
    level = np.sign(embedding) * root / length - slope * embedding
    return _Slopes(slope, level, nothing)
