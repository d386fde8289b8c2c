"""Along which two directions of the embedding the classes lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Doubles = NDArray[np.float64]

IMAGES_A_COMPONENT = 20
"""Images for each principal component that is looked at: with fewer, chance makes classes."""
COMPONENTS = 50
"""Principal components that are looked at, at most."""
SHRINKAGE = 0.1
"""Share of the mean variance in the covariance within classes: keeps it invertible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """N embeddings in the plane."""

    places: Doubles
    """(N, 2), mean 0."""
    shown: float
    """Share of the variance between the class means, in units of that within, that is seen."""


# One thread: a map then depends on no core count, and on a busy machine two threads that wait for
# each other took 6.6 s where one took 0.1 s.
@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # has no types
def project(embeddings: NDArray[np.float32], targets: NDArray[np.int64]) -> Projection:
    """Return linear discriminants (Fisher, 1936; Rao, 1948) of embeddings (N, D).

    Embeddings are scaled to length 1. Discriminants are sought only among the first principal
    components, which know no labels: in all D directions, few images could be told apart by chance.
    Two classes have one discriminant; the other direction is that in which images of one class
    differ most.
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

    By orthogonal iteration from a fixed start; an exact decomposition would take seconds.
    """
    start = np.random.default_rng(0).normal(size=(rows.shape[1], limit)).astype(rows.dtype)
    found = np.linalg.qr(start).Q
    for _ in range(5):
        found = np.linalg.qr(rows.T @ (rows @ found)).Q
    return np.asarray(found)


def _signs(places: Doubles) -> Doubles:
    """Return +1 or -1 a column: decompositions leave signs open, and a map must not flip."""
    extremes = places[np.abs(places).argmax(axis=0), np.arange(places.shape[1])]
    return np.where(extremes < 0, -1.0, 1.0)
