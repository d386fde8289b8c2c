"""Benchmark of Explain beside Classify of the same image, on a running server.

    PYTHONPATH=tests python -m benchmarks.explain ADDRESS MODEL IMAGE [--calls 100]

The calls take turns, after one of each, so that load of the machine affects all of them alike.
Prints the median seconds, and the ratio to Classify; the target is at most 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from topwork import Client


def seconds(call: Callable[[], object]) -> float:
    """Return the duration of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each kind of call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--calls", type=int, default=100)
    given = parser.parse_args()
    image = given.image.read_bytes()
    with Client(given.address) as client:
        calls: dict[str, Callable[[], object]] = {
            "Classify": partial(client.classify, given.model, [image]),
            "Explain, map only": partial(client.explain, given.model, image, neighbours=0),
            "Explain, 5 neighbours": partial(client.explain, given.model, image, neighbours=5),
        }
        for call in calls.values():
            call()
        rounds = [[seconds(call) for call in calls.values()] for _ in range(given.calls)]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    for name, median in zip(calls, medians, strict=True):
        print(f"{name:22} {1e3 * median:8.2f} ms   {median / medians[0]:.2f} x Classify")


if __name__ == "__main__":
    main()
