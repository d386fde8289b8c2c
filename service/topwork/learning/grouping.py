"""Average-linkage clustering of embeddings, for images that look alike and like no known class.

Similarity is the cosine of whitened embeddings: directions in which images of one known class
differ count less, since images of a new class differ in them, too. Two clusters are merged while
their mean similarity is close to that of two images of one known class: no threshold must be set.

Measured in ``tests/benchmarks/review.py``, see docs/review.md: the first group had 87 % and 89 %
images of a kind that was left out, with 20 and 100 photos of each other kind. Whitening and SHARE
were chosen on the same photos, where without whitening groups of other kinds often came first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import FloatArray
from topwork.bundle.exemplars import Exemplars

MAX_ROWS = 2_000
"""Raising it clusters more images, in quadratic memory: 2,000 take 16 MB and about a second."""

MIN_GROUP = 5
"""Raising it shows only larger groups."""

SHARE = 0.75
"""Raising it makes groups smaller and purer: share of the mean similarity within known classes."""

SHRINKAGE = 0.5
"""Raising it whitens less: weight of equal variances in the variances within known classes."""

SAMPLE = 1_000
"""Raising it estimates the variances from more exemplars: 1,000 take about 0.2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Whitened space of embeddings, with the similarity from which images look alike."""

    centre: NDArray[np.float32]
    """(D,), mean of the known classes' means."""
    axes: NDArray[np.float32]
    """(K, D), orthonormal directions of the differences within known classes."""
    scales: NDArray[np.float32]
    """(K,), factors of the axes; those of all other directions are 1."""
    known_similarity: float
    """Mean similarity of two different exemplars of one class."""

    @property
    def alike(self) -> float:
        """Least mean similarity of two clusters that are merged."""
        return SHARE * self.known_similarity

    def __call__(self, embeddings: FloatArray) -> NDArray[np.float32]:
        """Return unit rows (N, D), whose products are the similarities of embeddings (N, D)."""
        rows = _flatten(embeddings) - self.centre
        scaled = rows + (rows @ self.axes.T * (self.scales - 1)) @ self.axes
        return _unit(np.asarray(scaled, dtype=np.float32))


def learn_space(known: Exemplars) -> Space:
    """Return the space of a model's exemplars."""
    sample = _sampled(known)
    embeddings, targets = known.embedding_rows[sample], known.targets[sample]
    rows = _flatten(embeddings)
    present = np.unique(targets)
    means = np.stack([rows[targets == target].mean(axis=0) for target in present])
    differences = rows - means[np.searchsorted(present, targets)]
    # The axes of the smaller product, (N, N), are those of the covariance (D, D).
    variances, vectors = np.linalg.eigh(differences @ differences.T / len(rows))
    kept = variances > 1e-6 * max(float(variances[-1]), 1e-12)
    variances, vectors = variances[kept], vectors[:, kept]
    axes = _unit(vectors.T @ differences)
    common = SHRINKAGE * float(variances.mean()) if len(variances) else 1.0
    scales = np.sqrt(common / ((1 - SHRINKAGE) * variances + common))
    space = Space(
        centre=means.mean(axis=0),
        axes=axes,
        scales=np.asarray(scales, dtype=np.float32),
        known_similarity=1.0,
    )
    return replace(space, known_similarity=_mean_similarity(space(embeddings), targets))


def group(rows: NDArray[np.float32], *, alike: float, smallest: int = MIN_GROUP) -> list[list[int]]:
    """Return groups of unit rows (N, D), the largest first; rows of smaller groups are left out.

    Average linkage: in each step the two most similar clusters are merged, until no two have a mean
    similarity of ``alike``. Ties are merged in the order of the rows. Only the first MAX_ROWS rows
    are grouped.
    """
    rows = rows[:MAX_ROWS]
    count = len(rows)
    if count < smallest:
        return []
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    sizes = np.ones(count)
    members = [[row] for row in range(count)]
    best = similar.argmax(axis=1)
    highest = similar[np.arange(count), best]
    while highest[left := int(highest.argmax())] >= alike:
        left, right = sorted((left, int(best[left])))
        merged = (sizes[left] * similar[left] + sizes[right] * similar[right]) / (
            sizes[left] + sizes[right]
        )
        merged[[left, right]] = -np.inf
        similar[left] = similar[:, left] = merged
        similar[right] = similar[:, right] = -np.inf
        sizes[left] += sizes[right]
        members[left] += members[right]
        members[right] = []
        changed = np.flatnonzero((best == left) | (best == right) | (merged > highest))
        for row in {left, right, *changed.tolist()}:
            best[row] = similar[row].argmax()
            highest[row] = similar[row, best[row]]
    found = [sorted(chosen) for chosen in members if len(chosen) >= smallest]
    return sorted(found, key=lambda chosen: (-len(chosen), chosen[0]))


def _sampled(known: Exemplars) -> NDArray[np.int64]:
    """Return at most about SAMPLE rows, evenly over each class."""
    targets = np.unique(known.targets)
    most = max(2, SAMPLE // len(targets))
    chosen = []
    for target in targets:
        rows = np.flatnonzero(known.targets == target)
        chosen.append(rows[:: -(-len(rows) // most)])
    return np.concatenate(chosen)


def _mean_similarity(rows: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Return the mean over classes of the mean similarity of two different rows of the class."""
    found = []
    for target in np.unique(targets):
        chosen = rows[targets == target]
        count, total = len(chosen), chosen.sum(axis=0)
        if count > 1:
            found.append((float(total @ total) - count) / (count * (count - 1)))
    return float(np.mean(found)) if found else 1.0


def _flatten(rows: FloatArray) -> NDArray[np.float32]:
    """Return unit rows of signed square roots, which damp dominant features, as ``sqrt_l2``."""
    rows = np.asarray(rows, dtype=np.float32)
    return _unit(np.sign(rows) * np.sqrt(np.abs(rows)))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
