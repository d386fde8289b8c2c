"""Effect of AddClass on the latency of concurrent Classify calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving import client
from benchmarks.serving.client import Endpoint
from benchmarks.serving.tables import Table
from benchmarks.serving.workload import CLASSIFY, LEARNERS, Workload, decode, requests
from topwork import AsyncClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """A load during AddClass, compared with the same load before and after."""

    callers: int
    classes_added: int
    add_class_seconds: float
    """Mean seconds of an AddClass."""
    p50_ms_without: float
    p50_ms_with: float
    p99_ms_without: float
    p99_ms_with: float
    images_per_second_without: float
    images_per_second_with: float


def measure(
    address: str, workload: Workload, *, callers: int, seconds: float, first: int
) -> Learning:
    """Measure while AddClass adds the held-out label to ``learner-<first>`` and later models."""
    endpoint = Endpoint(address=address, path=CLASSIFY)
    bodies = requests(workload.photos, ["int8"])

    async def load() -> client.Load:
        return await client.closed_loop(
            endpoint, bodies, decode, callers=callers, seconds=seconds, server_cpu=lambda: 0.0
        )

    async def both() -> tuple[client.Load, list[float]]:
        took: list[float] = []
        stopping = asyncio.Event()

        async def add_class() -> None:
            async with AsyncClient(address) as learner:
                for number in range(first, LEARNERS):
                    start = time.perf_counter()
                    operation = await learner.add_class(
                        f"learner-{number}", workload.new_label, workload.new_photos
                    )
                    async for state in learner.watch(operation.name):
                        assert not state.raw.HasField("error"), state.raw.error
                    took.append(time.perf_counter() - start)
                    if stopping.is_set():
                        return
            raise RuntimeError(f"{LEARNERS} models are too few to learn for {seconds} s")

        async with asyncio.TaskGroup() as group:
            group.create_task(add_class())
            loaded = await load()
            stopping.set()
        return loaded, took

    before = client.run(load())
    during, took = client.run(both())
    after = client.run(load())
    p50s, p99s = zip(
        *(np.percentile(loaded.latencies, [50, 99]) * 1e3 for loaded in (before, during, after)),
        strict=True,
    )
    return Learning(
        callers=callers,
        classes_added=len(took),
        add_class_seconds=sum(took) / len(took),
        p50_ms_without=(p50s[0] + p50s[2]) / 2,
        p50_ms_with=p50s[1],
        p99_ms_without=(p99s[0] + p99s[2]) / 2,
        p99_ms_with=p99s[1],
        images_per_second_without=(before.calls_per_second + after.calls_per_second) / 2,
        images_per_second_with=during.calls_per_second,
    )


def table(rows: Sequence[Learning]) -> Table:
    """Return the measurements as a table."""
    titles = ["callers", "classes added", "s each", "p50 ms without", "p50 ms with"]
    titles += ["p99 ms without", "p99 ms with", "p99 with over without"]
    titles += ["images/s without", "images/s with"]
    lines = [
        [
            str(row.callers),
            str(row.classes_added),
            f"{row.add_class_seconds:.1f}",
            f"{row.p50_ms_without:.1f}",
            f"{row.p50_ms_with:.1f}",
            f"{row.p99_ms_without:.1f}",
            f"{row.p99_ms_with:.1f}",
            f"{row.p99_ms_with / row.p99_ms_without:.2f}",
            f"{row.images_per_second_without:.0f}",
            f"{row.images_per_second_with:.0f}",
        ]
        for row in rows
    ]
    return Table(name="learning", titles=titles, lines=lines, records=rows)
