"""Hot reload under load: a thousand swaps of revisions, with stalls and memory growth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving import client
from benchmarks.serving.client import Call, Endpoint
from benchmarks.serving.http2 import Failed
from benchmarks.serving.processes import Processes
from benchmarks.serving.tables import Table
from benchmarks.serving.workload import CLASSIFY, Workload, decode, requests
from topwork.bundle.store import Repository

CALLERS = 8
MODEL = "swapped"
QUIET_SECONDS = 0.1
"""Pause after each swap, in which stalls without a swap are measured."""
AFTERMATH_SECONDS = 0.025
"""Part of the pause that still counts as the swap."""
MOST_SECONDS = 10.0
"""Timeout of a swap until an answer of the new revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swaps:
    """Measurements of alternating revisions of a model under load."""

    swaps: int
    requests: int
    failed: int
    until_served_p50_ms: float
    """Time from serving.json's replacement to the first answer of the new revision."""
    until_served_p99_ms: float
    longest_stall_ms: float
    """Longest time without an answer during a swap."""
    longest_quiet_stall_ms: float
    """Longest time without an answer in the pauses between swaps."""
    memory_before_mib: float
    """Memory after the first tenth of the swaps."""
    memory_after_mib: float


Window = tuple[float, float]
"""Start and end."""


def measure(address: str, workload: Workload, processes: Processes, *, swaps: int) -> Swaps:
    """Swap ``swaps`` times, each after an answer of the previous revision."""
    return client.run(_Soak(address, workload, processes, swaps).run())


def table(rows: Sequence[Swaps]) -> Table:
    """Return the measurements as a table."""
    titles = ["swaps", "requests", "failed", "until served p50, ms", "until served p99, ms"]
    titles += [
        "longest stall, ms",
        "longest between swaps, ms",
        "MiB before",
        "MiB after",
        "growth",
    ]
    lines = [
        [
            str(row.swaps),
            str(row.requests),
            str(row.failed),
            f"{row.until_served_p50_ms:.0f}",
            f"{row.until_served_p99_ms:.0f}",
            f"{row.longest_stall_ms:.1f}",
            f"{row.longest_quiet_stall_ms:.1f}",
            f"{row.memory_before_mib:.0f}",
            f"{row.memory_after_mib:.0f}",
            f"{row.memory_after_mib / row.memory_before_mib - 1:+.1%}",
        ]
        for row in rows
    ]
    return Table(name="swaps", titles=titles, lines=lines, records=rows)


def longest_gap(moments: Sequence[float], windows: Iterable[Window]) -> float:
    """Return the longest gap between adjacent ``moments`` that overlaps a window."""
    starts, ends = np.asarray(moments[:-1]), np.asarray(moments[1:])
    longest = 0.0
    for start, end in windows:
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(starts, end)
        longest = max(longest, float(np.max((ends - starts)[first:last], initial=0.0)))
    return longest


class _Soak:
    def __init__(self, address: str, workload: Workload, processes: Processes, swaps: int) -> None:
        self._endpoint = Endpoint(address=address, path=CLASSIFY)
        self._repository = Repository(workload.main)
        self._bodies = requests(workload.photos, [MODEL])
        self._processes = processes
        self._swaps = swaps
        self._moments: list[float] = []
        self._failed = 0
        self._seen = (0, asyncio.Event())
        self._stopping = False

    async def run(self) -> Swaps:
        async with (
            client.connected(self._endpoint, CALLERS) as calls,
            asyncio.TaskGroup() as group,
        ):
            for number, call in enumerate(calls):
                group.create_task(self._ask(call, number * 7))
            await asyncio.sleep(client.WARM_UP_SECONDS)
            swapping, quiet, memory = [], [], list[float]()
            for number in range(self._swaps):
                start = time.perf_counter()
                await self._swap(1 + number % 2)
                end = time.perf_counter()
                await asyncio.sleep(QUIET_SECONDS)
                swapping.append((start, end))
                quiet.append((end + AFTERMATH_SECONDS, time.perf_counter()))
                if number in (self._swaps // 10, self._swaps - 1):
                    memory.append(self._processes.memory_mib())
            self._stopping = True
        served = [1e3 * (end - start) for start, end in swapping]
        p50, p99 = np.percentile(served, [50, 99])
        return Swaps(
            swaps=self._swaps,
            requests=len(self._moments) + self._failed,
            failed=self._failed,
            until_served_p50_ms=p50,
            until_served_p99_ms=p99,
            longest_stall_ms=1e3
            * longest_gap(
                self._moments, [(start, end + AFTERMATH_SECONDS) for start, end in swapping]
            ),
            longest_quiet_stall_ms=1e3 * longest_gap(self._moments, quiet),
            memory_before_mib=memory[0],
            memory_after_mib=memory[-1],
        )

    async def _swap(self, revision: int) -> None:
        self._seen = (revision, seen := asyncio.Event())
        await asyncio.to_thread(self._repository.set_serving, MODEL, revision, why="rollback")
        async with asyncio.timeout(MOST_SECONDS):
            await seen.wait()

    async def _ask(self, call: Call, offset: int) -> None:
        while not self._stopping:
            try:
                response = decode(await call(self._bodies[offset % len(self._bodies)]))
            except Failed:
                self._failed += 1
                continue
            self._moments.append(time.perf_counter())
            wanted, seen = self._seen
            if response.revision == wanted:
                seen.set()
            offset += 1
