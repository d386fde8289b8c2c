"""Rate of Classify for embeddings of the client: the engine in this process, and over the wire.

``PYTHONPATH=tests python -m benchmarks.computed_embeddings [--width 384] [--seconds 5]``. Rates are
for calls with one embedding, and for the seconds of one core. ``--images`` measures Classify of
images by the engine instead, with a tiny backbone, so that changes of the path before the encoder
show; run it in two checkouts by turns to compare them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from support import tiny
from support.pictures import picture

from topwork.bundle.store import Repository
from topwork.limits import DEFAULT_LIMITS
from topwork.serving.classifier import Classifier
from topwork.serving.encoders.threads import ThreadEncoder
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

CALLERS = 32
"""Calls at a time."""

Engine = Callable[[Classifier], Awaitable[object]]


def embeddings_repository(root: Path, width: int) -> Repository:
    """Return a repository with a model ``points`` of ten labels."""
    from support import spaces

    from topwork.inputs.embeddings import EmbeddingSpec

    generator = np.random.default_rng(0)
    spaces.SPEC = EmbeddingSpec(space="points-v1", width=width)
    made = Repository(root)
    rows = {
        f"label-{number}": list(
            (generator.normal(size=width) + generator.normal(size=(20, width))).astype(np.float32)
        )
        for number in range(10)
    }
    spaces.publish(made, "points", spaces.exemplars(rows))
    return made


async def rate(repository: Repository, call: Engine, seconds: float) -> float:
    """Return the calls for each second of processor time, of CALLERS concurrent callers."""
    encoder = ThreadEncoder(provider="cpu", cores=1, limits=DEFAULT_LIMITS)
    registry = Registry(repository, encoder, telemetry=Telemetry())
    classifier = Classifier(
        registry,
        encoder,
        limits=DEFAULT_LIMITS,
        cores=1,
        queue_limit=1024,
        telemetry=Telemetry(),
    )
    await classifier.start()
    await registry.start()
    try:
        await call(classifier)
        calls, end = 0, time.perf_counter() + seconds
        start = time.process_time()

        async def caller() -> None:
            nonlocal calls
            while time.perf_counter() < end:
                await call(classifier)
                calls += 1

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return calls / (time.process_time() - start)
    finally:
        await classifier.aclose()
        await registry.aclose()


def images(root: Path, seconds: float) -> float:
    """Return the rate of Classify for images."""
    made, photo = tiny.repository(root), picture("amber", 40)
    return asyncio.run(rate(made, lambda it: it.classify("colours", [photo]), seconds))


def embeddings(root: Path, width: int, seconds: float) -> float:
    """Return the rate of Classify for embeddings, by the engine."""
    from topwork.inputs.embeddings import SentEmbedding

    made = embeddings_repository(root, width)
    row = np.random.default_rng(1).normal(size=width).astype(np.float32)
    return asyncio.run(rate(made, lambda it: it.classify("points", [SentEmbedding(row)]), seconds))


def wire(root: Path, width: int, seconds: float) -> tuple[float, float]:
    """Return the calls per second of one blocking client, and the server's seconds for a call."""
    from support import servers

    from topwork import Client

    made = embeddings_repository(root, width)
    row = np.random.default_rng(1).normal(size=(1, width)).astype(np.float32)
    with (
        servers.running(made.root, worker=False, forked=False) as server,
        Client(server.address) as client,
    ):
        client.classify("points", row)
        before, calls, end = cpu_seconds(server.process.pid), 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            client.classify("points", row)
            calls += 1
        return calls / seconds, (cpu_seconds(server.process.pid) - before) / calls


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", action="store_true")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        rounds = range(given.rounds)
        if given.images:
            found = [images(root / str(each), given.seconds) for each in rounds]
            print(f"images, engine: {statistics.median(found):.0f} calls a core second")
            return
        found = [embeddings(root / str(each), given.width, given.seconds) for each in rounds]
        print(f"embeddings, engine: {statistics.median(found):.0f} calls a core second")
        calls, cost = wire(root / "wire", given.width, given.seconds)
        print(
            f"embeddings, one blocking client: {calls:.0f} calls/s, server {1e3 * cost:.3f} ms each"
        )


if __name__ == "__main__":
    main()
