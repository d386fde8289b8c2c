"""Linear discriminant analysis of embeddings in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Doubles = NDArray[np.float64]

IMAGES_A_COMPONENT = 20
"""Images per principal component; lowering it overfits: random labels seem to form classes."""
COMPONENTS = 50
"""Largest number of principal components."""
SHRINKAGE = 0.1
"""Share of the mean variance added to the within-class covariance to keep it invertible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Positions of N embeddings in the plane."""

    places: Doubles
    """(N, 2), mean 0."""
    shown: float
    """Share of the between-class variance, in units of the within-class variance, in the plane."""


# One thread: the map does not depend on the number of cores, and on a busy machine two threads that
# wait for each other took 6.6 s instead of 0.1 s.
@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # has no types
def project(embeddings: NDArray[np.float32], targets: NDArray[np.int64]) -> Projection:
    """Return linear discriminants (Fisher, 1936; Rao, 1948) of embeddings (N, D).

    Embeddings are L2-normalised. The analysis is limited to the first principal components, which
    do not depend on the labels: in all D dimensions, chance separates a small number of images.
    Two classes have one discriminant; the second axis is the direction of the largest variance
    within the classes.
    """
    x = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    x -= x.mean(axis=0)
    limit = min(COMPONENTS, max(2, len(x) // IMAGES_A_COMPONENT))
    y = (x @ _components(x, limit)).astype(np.float64)  # (N, Q)
    _, members, counts = np.unique(targets, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), y.shape[1]))
    np.add.at(means, members, y)
    means /= counts[:, None]
    within = y - means[members]

    covariance = within.T @ within / len(y)
    covariance += np.eye(len(covariance)) * max(SHRINKAGE * np.diag(covariance).mean(), 1e-12)
    lower = np.linalg.cholesky(covariance)
    weighted = means * np.sqrt(counts / len(y))[:, None]
    directions, lengths, _ = np.linalg.svd(np.linalg.solve(lower, weighted.T))
    places = np.linalg.solve(lower, y.T).T @ directions[:, :2]
    if len(counts) <= 2:
        places[:, 1] = y @ _components(within, 1)[:, 0] / np.sqrt(covariance.trace())
    variances = np.square(lengths)
    return Projection(
        places=places * _signs(places),
        shown=float(variances[:2].sum() / variances.sum()) if variances.sum() > 0 else 0.0,
    )


def _components(rows: NDArray[np.floating], limit: int) -> NDArray[np.floating]:
    """Return the first ``limit`` principal components (D, Q) of centred rows (N, D).

    Orthogonal iteration from fixed random sums of the rows, so that the order of the columns does
    not matter; an exact decomposition would take seconds.
    """
    sums = np.random.default_rng(0).normal(size=(len(rows), limit)).astype(rows.dtype)
    components = np.linalg.qr(rows.T @ sums).Q
    for _ in range(5):
        components = np.linalg.qr(rows.T @ (rows @ components)).Q
    return np.asarray(components)


def _signs(places: Doubles) -> Doubles:
    """Return +1 or -1 per column: decompositions leave signs open, and a map must not flip."""
    extremes = places[np.abs(places).argmax(axis=0), np.arange(places.shape[1])]
    return np.where(extremes < 0, -1.0, 1.0)
