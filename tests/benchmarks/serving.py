"""Measure how fast the server answers, beside a bare loop over the same images.

    python tests/benchmarks/serving.py [PHOTOS]

PHOTOS is a folder with a folder of photos for each class; without it flowers are rendered. The
client shares the cores with the server, so server CPU time an image stands beside images/s.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from topwork.bundle.image import preprocess
from topwork.bundle.store import Repository
from topwork.engine.backend import open_session
from topwork.engine.cores import available_cores
from topwork.rpc.client import AsyncClient
from topwork_trainer import commands

SECONDS = 6.0
"""How long each measurement runs."""


def main() -> None:
    """Measure and print a table, then one JSON line a row."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = Path(sys.argv[1]) if len(sys.argv) > 1 else work / "rendered"
        if len(sys.argv) < 2:
            commands.run("topwork_trainer", "demo-data", data, "--images-per-label", 40)
        repository = work / "repository"
        fit = ("fit", data, "--model", "bench", "--repository", repository, "--json")
        commands.run("topwork_trainer", *fit)
        photos = [path.read_bytes() for path in sorted(data.glob("*/*.jpg"))[::7]]
        with commands.serving(repository, work / "log") as served:
            rows = [
                _measure(repository, photos, served, callers=callers, images=images)
                for callers, images in ((1, 1), (8, 1), (32, 1), (4, 16))
            ]
    table = Table(
        "callers", "images a request", "images/s", "of ceiling", "p50 ms", "p99 ms", "CPU ms"
    )
    for row in rows:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console().print(table)
    for row in rows:
        print(json.dumps(row))


def _measure(
    repository: Path,
    photos: Sequence[bytes],
    served: commands.Serving,
    *,
    callers: int,
    images: int,
) -> dict[str, float]:
    """Return the figures of one load, with the ceiling measured right before and after it."""
    before = _ceiling(repository, photos)
    cpu = _cpu_seconds(served.process.pid)
    done, latencies, seconds = asyncio.run(_load(served.address, photos, callers, images))
    cpu = _cpu_seconds(served.process.pid) - cpu
    ceiling = (before + _ceiling(repository, photos)) / 2
    centiles = statistics.quantiles(latencies, n=100)
    return {
        "callers": callers,
        "images_a_request": images,
        "images_per_second": done / seconds,
        "of_ceiling": done / seconds / ceiling,
        "p50_ms": 1e3 * centiles[49],
        "p99_ms": 1e3 * centiles[98],
        "server_cpu_ms_an_image": 1e3 * cpu / done,
    }


def _ceiling(repository: Path, photos: Sequence[bytes]) -> float:
    """Return images/s of a bare loop, decode and backbone, one thread a core."""
    store = Repository(repository)
    manifest = store.manifest("bench", store.serving("bench"))
    spec = store.backbone(manifest).preprocess
    session = open_session(store.backbone_model(manifest.backbone), output="embedding")
    end = time.perf_counter() + SECONDS / 2

    def loop(offset: int) -> int:
        done = 0
        while time.perf_counter() < end:
            session.run(preprocess(photos[(offset + done) % len(photos)], spec)[None])
            done += 1
        return done

    cores = available_cores()
    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(loop, range(cores))) / (SECONDS / 2)


async def _load(
    address: str, photos: Sequence[bytes], callers: int, images: int
) -> tuple[int, list[float], float]:
    """Return images done, seconds of each call, and seconds in all."""
    latencies: list[float] = []
    start = time.perf_counter()

    async def call_on(client: AsyncClient, offset: int) -> None:
        while time.perf_counter() < start + SECONDS:
            chosen = [photos[(offset + index) % len(photos)] for index in range(images)]
            offset += images
            began = time.perf_counter()
            answer = await client.classify("bench", chosen)
            latencies.append(time.perf_counter() - began)
            assert not any(result.HasField("error") for result in answer.results)

    async with AsyncClient(address) as client, asyncio.TaskGroup() as group:
        for caller in range(callers):
            group.create_task(call_on(client, caller * 13))
    return len(latencies) * images, latencies, time.perf_counter() - start


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process used (its children's is not in it)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
