"""Benchmark of a repository in a bucket beside one in files, and of two hosts that follow it.

    PYTHONPATH=tests python -m benchmarks.buckets

The store is SeaweedFS on the loopback, the database PostgreSQL; both must be installed. Servers
start in turns with the same models in files and in the bucket, the latter with a warm cache: a
start lasts from the command to the log's ``ready``. Then two servers with caches of their own
answer while another process moves the pointers of some models, again and again; each round lasts
until both servers answer with the new revision of all of them. Prints one JSON object: seconds, and
calls that failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
from support import object_stores, postgres, tiny
from support.pictures import COLOURS, pictures
from support.servers import Running

from topwork import CallFailed, Client
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.opening import open_repository
from topwork.bundle.store import Repository
from topwork.storage.location import Location, ObjectCache


@click.command(context_settings={"show_default": True})
@click.option("--models", default=200, help="Models that a server loads at its start.")
@click.option("--starts", default=5, help="Starts of each kind.")
@click.option("--swapped", default=10, help="Models whose pointers move in each round.")
@click.option("--rounds", default=100, help="Rounds of moves.")
def main(models: int, starts: int, swapped: int, rounds: int) -> None:
    """Measure and print one JSON object."""
    exemplars = tiny.embed_pictures({label: pictures(label, 20) for label in list(COLOURS)[:3]})
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        root = Path(temporary)
        store = stack.enter_context(object_stores.seaweedfs())
        database = stack.enter_context(postgres.running()).url("postgres")
        os.environ.update(store.environment())
        places: dict[str, tuple[Location, str]] = {
            "files": (root / "repository", ""),
            "bucket": (store.new_url(), database),
        }
        for location, url in places.values():
            opened = open_repository(
                location, database=url, cache=ObjectCache(directory=root / "filling"), writes=True
            )
            _fill(opened, models, exemplars)
        result = {"models": models, **_starts(places, root, starts)}
        result |= _swaps(*places["bucket"], root, swapped, rounds, exemplars)
    print(json.dumps(result))


def _fill(repository: Repository, models: int, exemplars: Exemplars) -> None:
    first = tiny.publish(repository, "model-0", exemplars)
    for number in range(1, models):
        tiny.publish_copy(repository, first, model=f"model-{number}")
        repository.set_serving(f"model-{number}", 1, why="fit")


def _starts(places: dict[str, tuple[Location, str]], root: Path, starts: int) -> dict[str, object]:
    seconds: dict[str, list[float]] = {name: [] for name in places}
    for turn in range(starts + 1):
        for name, (location, database) in places.items():
            begun = time.perf_counter()
            with _server(location, database, root / "host-0"):
                if turn:  # the first start fills the caches
                    seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["bucket"], seconds["files"], strict=True)]
    return {"start": medians, "ratio": statistics.median(ratios), "ratios": sorted(ratios)}


def _swaps(
    location: Location, database: str, root: Path, swapped: int, rounds: int, exemplars: Exemplars
) -> dict[str, object]:
    cache = ObjectCache(directory=root / "mover")
    repository = open_repository(location, database=database, cache=cache, writes=True)
    names = [f"model-{number}" for number in range(swapped)]
    for name in names:
        tiny.publish(repository, name, exemplars)
    photo = pictures(next(iter(COLOURS)), 1)
    slowest, failed, answered = [], [], [0]
    stop = threading.Event()
    with (
        _server(location, database, root / "host-1") as one,
        _server(location, database, root / "host-2") as two,
        Client(one.address) as first,
        Client(two.address) as second,
    ):

        def ask(client: Client) -> None:
            while not stop.is_set():
                try:
                    for name in names:
                        client.classify(name, photo)
                        answered[0] += 1
                except CallFailed as error:
                    failed.append(str(error))

        askers = [threading.Thread(target=ask, args=(client,)) for client in (first, second)]
        for asker in askers:
            asker.start()
        for turn in range(rounds):
            wanted = 1 + turn % 2
            for name in names:
                repository.set_serving(name, wanted, why="rollback")
            moved = time.perf_counter()
            while any(
                client.classify(name, photo).revision != wanted
                for client in (first, second)
                for name in names
            ):
                time.sleep(0.01)
            slowest.append(time.perf_counter() - moved)
        stop.set()
        for asker in askers:
            asker.join()
    return {
        "swaps": 2 * swapped * rounds,
        "last_swap": {"median": statistics.median(slowest), "longest": max(slowest)},
        "answered": answered[0],
        "failed": failed,
    }


@contextlib.contextmanager
def _server(location: Location, database: str, cache: Path) -> Iterator[Running]:
    """Run a server without a worker; yield it when it is ready."""
    options = ["--repository", str(location), "--cache-directory", str(cache), "--no-worker"]
    if database:
        options += ["--database", database]
    command = [sys.executable, "-m", "topwork.cli", "serve", *options, "--address", "127.0.0.1:0"]
    running = Running([*command, "--log-format", "json", "--provider", "cpu"], cache)
    try:
        running.log_entry("ready")
        yield running
    finally:
        running.close()


if __name__ == "__main__":
    main()
