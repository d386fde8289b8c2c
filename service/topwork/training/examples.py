"""Index of a revision's examples, with their cross-validated scores."""

from __future__ import annotations

import numpy as np

from topwork.bundle.examples import ExampleIndex, make_index
from topwork.bundle.exemplars import Exemplars, ShardRows
from topwork.learning.audit import suspects
from topwork.learning.learn import Judged


def index_examples(
    exemplars: Exemplars, judged: Judged, seed: int, sources: ShardRows
) -> ExampleIndex:
    """Return the index of the exemplars that a head was learnt from with ``seed``.

    ``sources`` are their places in the revision's shards.
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
        folds=exemplars.folds(seed),
    )
