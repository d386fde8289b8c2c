"""Kill encoder processes while clients classify: ``PYTHONPATH=tests python -m soak.encoders``.

A real server with a process for each core; every call must get the right answer, whatever is
killed. Two deaths at the same image fail that image alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from support import servers, tiny
from support.pictures import COLOURS, picture

from topwork import CallFailed, Client
from topwork.client.results import Prediction

HASTY, HASTY_SECONDS = 0.1, 0.02
"""Share of calls whose deadline is too early, and that deadline at most."""

TOLERANCE = 1e-5
"""Largest difference of a probability: heads run for groups of different sizes."""


@dataclass
class Counts:
    """What the clients saw."""

    right: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    kills: int = 0


@click.command(context_settings={"show_default": True})
@click.option("--seconds", default=120.0, help="Length of the test.")
@click.option("--pause", default=1.0, help="Mean seconds between two kills; 0: no kills.")
@click.option("--clients", default=8, help="Number of clients; each has one call at a time.")
@click.option("--images", default=4, help="Images of a call.")
def main(seconds: float, pause: float, clients: int, images: int) -> None:
    """Exit with 1 if an answer was wrong, or a call failed."""
    with tempfile.TemporaryDirectory() as directory:
        repository = tiny.repository(Path(directory) / "repository")
        with servers.running(
            repository.root, worker=False, forked=False, cores=os.cpu_count() or 1
        ) as server:
            counts = load(server, seconds=seconds, pause=pause, clients=clients, images=images)
    milliseconds = [1e3 * float(np.percentile(counts.seconds, rank)) for rank in (50, 99, 100)]
    click.echo(
        f"{counts.right} right and {counts.wrong} wrong calls, failed {dict(counts.failed)}, "
        f"{counts.kills} kills; p50, p99, longest: "
        + ", ".join(f"{each:.0f} ms" for each in milliseconds)
    )
    sys.exit(bool(counts.wrong or counts.failed))


def load(
    server: servers.Running, *, seconds: float, pause: float, clients: int, images: int
) -> Counts:
    """Classify and kill for a time; return the counts."""
    counts, lock, stop = Counts(), threading.Lock(), threading.Event()
    photos = [picture(colour, number) for colour in COLOURS for number in range(8)]
    with Client(server.address) as calm:
        expected = [calm.classify("colours", [photo]).results[0].predictions for photo in photos]

    def classify(seed: int) -> None:
        chance = random.Random(seed)
        with Client(server.address) as client:
            while not stop.is_set():
                chosen = [chance.randrange(len(photos)) for _ in range(images)]
                start, is_hasty = time.perf_counter(), chance.random() < HASTY
                timeout = chance.random() * HASTY_SECONDS if is_hasty else None
                try:
                    called = [photos[index] for index in chosen]
                    found = client.classify("colours", called, timeout=timeout)
                except CallFailed as error:
                    with lock:
                        counts.failed[error.reason or str(error.code)] += not is_hasty
                    continue
                taken = time.perf_counter() - start
                is_right = all(
                    is_close(result.predictions, expected[index])
                    for index, result in zip(chosen, found.results, strict=True)
                )
                with lock:
                    counts.seconds.append(taken)
                    counts.right += is_right
                    counts.wrong += not is_right

    threads = [threading.Thread(target=classify, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    chance, end = random.Random(0), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(pause, 1.0) or 0.1)
        if pause and (pids := servers.encoders_of(server.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)
                counts.kills += 1
    stop.set()
    for thread in threads:
        thread.join()
    servers.eventually(lambda: len(servers.encoders_of(server.process.pid)) == os.cpu_count())
    counts.failed += Counter()  # without zeros
    return counts


def is_close(found: Sequence[Prediction], expected: Sequence[Prediction]) -> bool:
    """Return True if two answers for an image are equal but for rounding."""
    return [each.label for each in found] == [each.label for each in expected] and all(
        abs(one.probability - other.probability) <= TOLERANCE
        for one, other in zip(found, expected, strict=True)
    )


if __name__ == "__main__":
    main()
