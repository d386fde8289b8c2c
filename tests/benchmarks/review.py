"""Benchmark of the review queue: labels saved, purity of a new class's group, cost of the capture.

    PYTHONPATH=tests python -m benchmarks.review labels REPOSITORY MODEL [--draws 5]
    PYTHONPATH=tests python -m benchmarks.review groups REPOSITORY MODEL [--draws 2]
    PYTHONPATH=tests python -m benchmarks.review throughput REPOSITORY MODEL PHOTOS [--turns 6]

``labels``: a head of ten photos of each class; the other photos of a half of the model are offered,
in rounds, to the policy and to a random choice, and the accuracy is that on the other half. Prints
the labels that each needs for accuracies between those of the first and the last round.

``groups``: each class in turn is left out, and all photos are offered. Prints the share of the new
class in the first group (purity), and the share of the new class's photos that it has.

``throughput``: a server process classifies a folder of photos in turns with the policy off and on,
with a daily budget that the photos use up. Prints the ratio of the images a second. The photos must
be others than those of the model, which the queue leaves out.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from support import servers

from topwork import Client
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.head import Head
from topwork.bundle.store import Repository
from topwork.learning.grouping import group, learn_space
from topwork.learning.learn import learn
from topwork.review.candidates import DOUBTFUL_MARGIN
from topwork.review.offer import FAR
from topwork.runtime.cores import available_cores
from topwork.v1 import review_service_pb2 as review_pb

FIRST = 10
"""Photos of a class that the first head is learnt from."""

ROUNDS = (10, 10, 20, 20, 40, 40, 60, 100, 100, 200)
"""Labels that are given in each round."""

STREAM = 400
"""Photos of known classes that are streamed in ``groups``, beside 150 of the new one."""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["labels", "groups", "throughput"])
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--images", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.part == "throughput":
        throughput(arguments)
        return
    repository = Repository(arguments.repository)
    manifest = repository.manifest(arguments.model, repository.serving(arguments.model))
    exemplars = repository.exemplars(manifest.exemplars)
    if arguments.part == "labels":
        labels(exemplars, arguments.draws)
    else:
        groups(exemplars, arguments.draws)


def labels(exemplars: Exemplars, draws: int) -> None:
    """Print the labels needed for an accuracy, by policy and by random choice."""
    curves: dict[str, list[list[float]]] = {"policy": [], "random": []}
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(exemplars))
        pool, held_out = order[: len(order) // 2], order[len(order) // 2 :]
        first = np.concatenate(
            [pool[exemplars.targets[pool] == target][:FIRST] for target in _classes(exemplars)]
        )
        for name, curve in curves.items():
            curve.append([*_curve(exemplars, first, pool, held_out, name, rng)])
    means = {name: np.mean(curve, axis=0) for name, curve in curves.items()}
    given = np.cumsum([0, *ROUNDS])
    print("| labels | policy | random |\n| --- | --- | --- |")
    for count, policy, chance in zip(given, *means.values(), strict=True):
        print(f"| {count} | {policy:.3f} | {chance:.3f} |")
    print("\n| accuracy | policy | random | ratio |\n| --- | --- | --- | --- |")
    start, end = means["random"][0], means["random"][-1]
    for share in (0.5, 0.7, 0.8, 0.9):
        wanted = start + share * (end - start)
        needed = {name: _needed(given, means[name], wanted) for name in means}
        ratio = needed["policy"] / needed["random"]
        print(f"| {wanted:.3f} | {needed['policy']:.0f} | {needed['random']:.0f} | {ratio:.2f} |")


def groups(exemplars: Exemplars, draws: int) -> None:
    """Print purity and share of the first group when a new class is streamed in."""
    print("| photos a class | new class | offered | group | purity | share |")
    print("| --- | --- | --- | --- | --- | --- |")
    for photos in (20, 100):
        for new in _classes(exemplars):
            rows = [_first_group(exemplars, photos, new, seed) for seed in range(draws)]
            offered, size, purity, share = np.mean(rows, axis=0)
            label = exemplars.labels[new]
            print(
                f"| {photos} | {label} | {offered:.0f} | {size:.0f} | {purity:.2f} | {share:.2f} |"
            )


def throughput(arguments: argparse.Namespace) -> None:
    """Print the ratio of the throughput with the policy on to that with the policy off."""
    photos = [path.read_bytes() for path in sorted(arguments.photos.rglob("*.jpg"))]
    stream = islice(cycle(photos), None)
    rates: dict[bool, list[float]] = {True: [], False: []}
    with TemporaryDirectory() as directory:
        repository = Path(directory) / "repository"
        shutil.copytree(arguments.repository, repository)
        with (
            servers.running(repository, worker=False, forked=False) as server,
            Client(server.address) as client,
        ):
            _rate(client, arguments.model, list(islice(stream, arguments.images)))
            for _ in range(arguments.turns):
                for enabled in (False, True):
                    policy = review_pb.ReviewPolicy(enabled=enabled, images_per_day=2_000)
                    client.update_review_policy(arguments.model, policy)
                    images = list(islice(stream, arguments.images))
                    rates[enabled].append(_rate(client, arguments.model, images))
                print(
                    f"ratio {rates[True][-1] / rates[False][-1]:.3f}", file=sys.stderr, flush=True
                )
            kept = client.review_policy(arguments.model).kept_today
    ratios = [on / off for on, off in zip(rates[True], rates[False], strict=True)]
    print("| off, images/s | on, images/s | ratio, median | kept |\n| --- | --- | --- | --- |")
    off, on = statistics.median(rates[False]), statistics.median(rates[True])
    print(f"| {off:.0f} | {on:.0f} | {statistics.median(ratios):.3f} | {kept} |")


def _rate(client: Client, model: str, images: Sequence[bytes]) -> float:
    start = time.perf_counter()
    for _ in client.classify_stream(model, images):
        pass
    return len(images) / (time.perf_counter() - start)


def _curve(
    exemplars: Exemplars,
    first: NDArray[np.int64],
    pool: NDArray[np.int64],
    held_out: NDArray[np.int64],
    choice: str,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Yield the accuracy before the first and after each round."""
    known = np.zeros(len(exemplars), dtype=bool)
    known[first] = True
    for count in (*ROUNDS, 0):
        head = learn(exemplars.where(known), seed=0, threads=available_cores()).head
        answers = head.logits(exemplars.embeddings[held_out]).argmax(axis=1)
        yield float((answers == exemplars.targets[held_out]).mean())
        left = rng.permutation(pool[~known[pool]])
        if choice == "policy":
            left = left[np.argsort(-_usefulness(head, exemplars.embeddings[left]), kind="stable")]
        known[left[:count]] = True


def _first_group(exemplars: Exemplars, photos: int, new: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(exemplars))
    of_new = exemplars.targets[order] == new
    known = np.zeros(len(exemplars), dtype=bool)
    for target in _classes(exemplars):
        if target != new:
            known[order[exemplars.targets[order] == target][:photos]] = True
    stream = np.concatenate([order[~of_new & ~known[order]][:STREAM], order[of_new][:150]])
    train = exemplars.where(known)
    head = learn(train, seed=0, threads=available_cores()).head
    embeddings = exemplars.embeddings[stream]
    margin, unknown = _doubts(head, embeddings)
    doubtful = np.flatnonzero((unknown >= FAR) | (margin < DOUBTFUL_MARGIN))
    doubtful = doubtful[np.argsort(-np.maximum(unknown, 1 - margin)[doubtful], kind="stable")]
    space = learn_space(train)
    found = group(space(embeddings[doubtful]), alike=space.alike)
    assert head.unknown is not None, "a head of photos of flowers detects unknown images"
    called = unknown[doubtful] >= head.unknown.threshold
    members = max(found, key=lambda members: int(called[members].sum()))
    is_new = exemplars.targets[stream][doubtful] == new
    right = float(is_new[members].sum())
    return [len(doubtful), len(members), right / len(members), right / float(is_new.sum())]


def _usefulness(head: Head, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    margin, unknown = _doubts(head, embeddings)
    return np.maximum(1 - margin, unknown)


def _doubts(
    head: Head, embeddings: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return margins and unknown probabilities."""
    logits = head.logits(embeddings)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    highest = np.sort(powers / powers.sum(axis=1, keepdims=True), axis=1)[:, -2:]
    unknown = np.zeros(len(embeddings))
    if head.unknown is not None:
        unknown = np.asarray(head.unknown_probabilities(embeddings))
    return np.asarray(highest[:, 1] - highest[:, 0]), unknown


def _needed(given: NDArray[np.int64], accuracies: NDArray[np.float64], wanted: float) -> float:
    """Return the labels for an accuracy, interpolated between rounds; accuracies never fall."""
    rising = np.maximum.accumulate(accuracies)
    return float(np.interp(wanted, rising, given)) if rising[-1] >= wanted else float("inf")


def _classes(exemplars: Exemplars) -> range:
    return range(len(exemplars.labels))


if __name__ == "__main__":
    main()
