"""Index of a revision's examples, with their cross-validated scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.examples import RANKED, ExampleIndex, make_index
from topwork.bundle.exemplars import Exemplars, ShardRows
from topwork.learning.audit import suspects
from topwork.learning.learn import Judged
from topwork.report.content import Places


def index_examples(
    exemplars: Exemplars, judged: Judged, seed: int, sources: ShardRows, places: Places
) -> ExampleIndex:
    """Return the index of the exemplars that a head was learnt from with ``seed``.

    ``sources`` are where they are in the revision's shards, ``places`` those on the embedding map.
    """
    count, rows = len(exemplars), judged.rows
    targets = exemplars.targets[rows]
    every = np.arange(len(rows))
    probabilities, other_probabilities, suspicion = (np.full(count, np.nan) for _ in range(3))
    suggested = np.full(count, -1)
    others = judged.probabilities.copy()
    others[every, targets] = -1
    probabilities[rows] = judged.probabilities[every, targets]
    suggested[rows] = others.argmax(axis=1)
    other_probabilities[rows] = others[every, suggested[rows]]
    suspicion[:] = 0
    for place, probable in suspects(targets, judged.probabilities):
        row = rows[place]
        suggested[row] = probable
        other_probabilities[row] = judged.probabilities[place, probable]
        suspicion[row] = other_probabilities[row] - probabilities[row]
    ranked, ranked_probabilities = np.full((count, RANKED), -1), np.full((count, RANKED), np.nan)
    for place, best in enumerate(_most_probable(judged.probabilities)):
        ranked[rows, place] = best
        ranked_probabilities[rows, place] = judged.probabilities[every, best]
    points = np.full((count, 2), np.nan)
    points[places.rows] = places.points
    return make_index(
        exemplars.labels,
        exemplars.digests,
        exemplars.targets,
        exemplars.names,
        sources,
        probabilities=probabilities,
        suggested=suggested,
        suggested_probabilities=other_probabilities,
        suspicion=suspicion,
        folds=exemplars.folds(seed) if judged.folds is None else judged.folds,
        ranked=ranked,
        ranked_probabilities=ranked_probabilities,
        points=points,
    )


def _most_probable(probabilities: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
    """Yield the class indices (J,) of the RANKED highest probabilities (J, C), highest first."""
    left = probabilities.copy()
    for _ in range(min(RANKED, left.shape[1])):
        best = left.argmax(axis=1)
        yield best
        left[np.arange(len(left)), best] = -1
