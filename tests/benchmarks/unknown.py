"""Benchmark of the detection of unknown images: AUROC, false rejects and detection on new photos.

    PYTHONPATH=tests python -m benchmarks.unknown REPOSITORY MODEL [OTHER]
        [--photos 20 50 320] [--draws 4] [--synthetic 20]

Each draw takes some photos of each class of a model, and learns a head from them as ``fit`` does.
The model's other photos are known; strangers are, in turn:

* each class of MODEL, for a head that is learnt from the other classes (leave-one-class-out)
* two classes and three classes of MODEL, for a head that is learnt from the others
* the photos of OTHER for a head of MODEL, and the photos of MODEL for a head of OTHER
* half of the synthetic classes, made by ``few_photos.synthesise``, for a head of the other half

The embeddings are those of the models' exemplars. Prints a table in Markdown, means over the draws.
``highest`` and ``nearest`` are the AUROC of the highest logit and of the distance to the nearest
exemplar alone, ``behind`` is the AUROC less the better of the two, in points; then the shares of
known photos and of strangers that are called unknown, and the shares at exactly 5 % false alarms.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.few_photos import JUDGED, draw, synthesise
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.errors import NotFound
from topwork.learning.learn import learn
from topwork.learning.unknown import FALSE_REJECTS, auroc
from topwork.runtime.cores import available_cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Photos to learn from, known photos that were not learnt, and strangers."""

    name: str
    train: Exemplars
    known: Exemplars
    strangers: Exemplars


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--photos", type=int, nargs="+", default=[20, 50, 320])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--synthetic", type=int, nargs="*", default=[20])
    arguments = parser.parse_args()
    repository = Repository(arguments.repository)

    def exemplars(model: str) -> Exemplars:
        manifest = repository.manifest(model, repository.serving(model))
        return repository.exemplars(manifest.exemplars)

    first = exemplars(arguments.model)
    other = exemplars(arguments.other) if arguments.other else None
    print("| strangers | a class | highest | nearest | AUROC | behind | false | found | at 5 % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for photos in arguments.photos:
        measured = defaultdict(list)
        for seed in range(arguments.draws):
            for case in cases(first, other, arguments.synthetic, photos, seed):
                measured[case.name].append(measure(case))
        for name, rows in measured.items():
            print(row(name, photos, rows), flush=True)


def cases(
    first: Exemplars, other: Exemplars | None, synthetic: Sequence[int], photos: int, seed: int
) -> Iterator[Case]:
    """Yield the cases of a draw that leave known photos to judge."""
    labels = len(first.labels)
    splits = [(label, [number]) for number, label in enumerate(first.labels)]
    for count in range(2, min(labels, 4)):
        chosen = [(seed + number) % labels for number in range(count)]
        splits.append((f"{count} of {labels} classes", chosen))
    sets = [(name, first, strange) for name, strange in splits]
    for classes in synthetic:
        if photos <= 50:
            made = synthesise(first, classes, photos + JUDGED, seed)
            sets.append((f"half of {classes} synthetic", made, list(range(0, classes, 2))))
    for name, everything, strange in sets:
        is_strange = np.isin(everything.targets, strange)
        train, known = draw(everything.where(~is_strange), photos, seed)
        yield Case(
            name=name,
            train=train,
            known=known,
            strangers=everything.where(is_strange),
        )
    pairs = [] if other is None else [("OTHER", first, other), ("MODEL", other, first)]
    for name, everything, strangers in pairs:
        if everything.counts().min() > photos:
            train, known = draw(everything, photos, seed)
            yield Case(name=name, train=train, known=known, strangers=strangers)


def measure(case: Case) -> list[float]:
    """Return the columns of the table for a case, as shares."""
    head = learn(case.train, seed=0, threads=available_cores()).head
    if head.unknown is None:
        raise NotFound(f"no detector of {case.name}", kind="detector", resource=case.name)
    embeddings = (case.known.embeddings, case.strangers.embeddings)
    highest = [-head.logits(rows).max(axis=1) for rows in embeddings]
    support = head.unknown.support
    nearest = [support.distances(head.normaliser(rows)).min(axis=1) for rows in embeddings]
    known, strangers = (head.unknown_probabilities(rows) for rows in embeddings)
    threshold = head.unknown.threshold
    best = max(auroc(*highest), auroc(*nearest))
    return [
        auroc(*highest),
        auroc(*nearest),
        auroc(known, strangers),
        auroc(known, strangers) - best,
        float((known >= threshold).mean()),
        float((strangers >= threshold).mean()),
        float((strangers > np.quantile(known, 1 - FALSE_REJECTS)).mean()),
    ]


def row(name: str, photos: int, rows: Sequence[Sequence[float]]) -> str:
    """Return a row of the table: means over the draws."""
    highest, nearest, found, behind, *shares = np.mean(rows, axis=0)
    cells = [f"{highest:.3f}", f"{nearest:.3f}", f"{found:.3f}", f"{100 * behind:+.1f}"]
    cells += [f"{share:.3f}" for share in shares]
    return f"| {name} | {photos} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
