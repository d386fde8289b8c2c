"""Benchmark of the correction of wrong labels: accuracy on other photos, before and after.

    PYTHONPATH=tests python -m benchmarks.flipped_labels REPOSITORY MODEL [--flipped 0.05]
        [--corrected 60] [--draws 5]

Each draw takes four fifths of the photos of each class of a model, gives a share of them a random
other label, and learns a head from them as ``fit`` does. The first photos of the list of examples,
the most suspected ones, are corrected in two ways:

* by a person: a flipped label is moved back, other photos stay
* blindly: every photo is moved to its suggested label

The embeddings are those of the model's exemplars. Prints a table in Markdown: the accuracy on the
photos that were not drawn, and the flipped labels among those that were listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.few_photos import draw
from topwork.bundle.exemplars import Exemplars, ShardRows
from topwork.bundle.store import Repository
from topwork.learning.learn import Learned, learn
from topwork.report.embedding_map import locate
from topwork.runtime.cores import available_cores
from topwork.serving.examples import ExampleFilter, select
from topwork.training.examples import index_examples

LEARNT = 0.8
"""Share of the photos of the smallest class that is drawn of each class."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("--flipped", type=float, default=0.05)
    parser.add_argument("--corrected", type=int, default=60)
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    repository = Repository(arguments.repository)
    manifest = repository.manifest(arguments.model, repository.serving(arguments.model))
    exemplars = repository.exemplars(manifest.exemplars)
    count = int(LEARNT * exemplars.counts().min())

    def measure(seed: int) -> Iterator[float]:
        """Yield the columns of the table for a draw."""
        train, test = draw(exemplars, count, seed)
        clean = learnt(train)
        flipped = replace(train, targets=flip(train, arguments.flipped, seed))
        wrong = learnt(flipped)
        sources = ShardRows.of_split(flipped)
        index = index_examples(flipped, wrong.judged, 0, sources, locate(flipped))
        listed = select(index, manifest, ExampleFilter())[: arguments.corrected]
        by_person, blindly = flipped.targets.copy(), flipped.targets.copy()
        by_person[listed] = train.targets[listed]
        blindly[listed] = index.suggested[listed]
        corrected = [learnt(replace(train, targets=found)) for found in (by_person, blindly)]
        yield from (accuracy(learned, test) for learned in (clean, wrong, *corrected))
        yield float((flipped.targets != train.targets).sum())
        yield float((flipped.targets != train.targets)[listed].sum())

    columns = "draw | clean | flipped | corrected by a person | blindly"
    print(f"| {columns} | flipped labels | of these in the first {arguments.corrected} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for seed in range(arguments.draws):
        rows.append([*measure(seed)])
        print(row(str(seed), rows[-1]), flush=True)
    print(row("mean", np.mean(rows, axis=0).tolist()))


def learnt(exemplars: Exemplars) -> Learned:
    """Return the head of the exemplars."""
    return learn(exemplars, seed=0, threads=available_cores())


def flip(exemplars: Exemplars, share: float, seed: int) -> NDArray[np.int64]:
    """Return the classes (N,), of which a share is replaced by another class at random."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(exemplars))[: round(share * len(exemplars))]
    targets = exemplars.targets.copy()
    others = rng.integers(1, len(exemplars.labels), len(chosen))
    targets[chosen] = (targets[chosen] + others) % len(exemplars.labels)
    return targets


def accuracy(learned: Learned, test: Exemplars) -> float:
    """Return the accuracy of a head on other photos."""
    found = learned.head.probabilities(test.embeddings).argmax(axis=1)
    return float((found == test.targets).mean())


def row(name: str, values: list[float]) -> str:
    """Return a row of the table."""
    cells = [f"{value:.4f}" for value in values[:4]] + [f"{value:.0f}" for value in values[4:]]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
