"""Throughput and latency of a server in a closed loop, compared with the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving import client
from benchmarks.serving.ceiling import Ceiling
from benchmarks.serving.client import Check, Endpoint
from benchmarks.serving.processes import Processes
from benchmarks.serving.tables import Table

STEADY = 0.05
"""Maximum disturbance (a share) of a valid measurement."""
TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Durations of a measurement's parts in seconds."""

    load: float
    ceiling: float
    """Duration before and again after the load; half of it for the lone image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One load: endpoint, requests, and its description in the table."""

    endpoint: Endpoint
    bodies: Sequence[bytes]
    check: Check
    server: str
    precision: str
    callers: int
    images: int
    """Images in each body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Measurements of one load. Ratios are to the ceiling measured right before and after it."""

    server: str
    precision: str
    callers: int
    images: int
    """Images in each request."""
    images_per_second: float
    of_ceiling: float
    of_the_rest: float
    """Throughput over the ceiling minus the client's share of the cores."""
    p50_ms: float
    p99_ms: float
    of_lone: float | None
    """With one caller: p50 over the ceiling's median time of a lone image."""
    server_cpu_ms: float
    """CPU milliseconds per image of all the server's processes."""
    client_cpu_ms: float
    """CPU milliseconds per image."""
    memory_mib: float
    disturbance: float
    """Difference of the ceilings before and after (a share), or other processes' CPU if more."""


def measure(
    case: Case, processes: Processes, *, ceiling: Ceiling, cores: int, durations: Durations
) -> Row:
    """Measure one load on a running server; repeat if other processes disturbed it."""
    rows: list[Row] = []
    while len(rows) < TRIES and (not rows or rows[-1].disturbance > STEADY):
        rows.append(_measure(case, processes, ceiling, cores, durations))
    return min(rows, key=lambda row: row.disturbance)


def table(name: str, rows: Sequence[Row]) -> Table:
    """Return the rows as a table."""
    titles = ["server", "precision", "callers", "images", "images/s", "of ceiling", "of the rest"]
    titles += ["p50 ms", "p99 ms", "of lone", "server CPU", "client CPU", "MiB"]
    lines = [
        [
            row.server,
            row.precision,
            str(row.callers),
            str(row.images),
            f"{row.images_per_second:.0f}",
            f"{row.of_ceiling:.2f}",
            f"{row.of_the_rest:.2f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            "" if row.of_lone is None else f"{row.of_lone:.2f}",
            f"{row.server_cpu_ms:.2f}",
            f"{row.client_cpu_ms:.2f}",
            f"{row.memory_mib:.0f}",
        ]
        for row in rows
    ]
    return Table(name=name, titles=titles, lines=lines, records=rows)


def _measure(
    case: Case, processes: Processes, ceiling: Ceiling, cores: int, durations: Durations
) -> Row:
    lone = case.callers == 1 and case.images == 1
    before = _ceilings(ceiling, durations, lone=lone)
    load = client.run(
        client.closed_loop(
            case.endpoint,
            case.bodies,
            case.check,
            callers=case.callers,
            # At least twice the time of each caller's first answer.
            seconds=max(durations.load, 2 * case.callers * case.images / before[0]),
            server_cpu=processes.cpu_seconds,
        )
    )
    memory = processes.memory_mib()
    after = _ceilings(ceiling, durations, lone=lone)
    throughput, busy, lone_ms = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    rate = load.calls_per_second * case.images
    p50, p99 = 1e3 * np.percentile(load.latencies, [50, 99])
    return Row(
        server=case.server,
        precision=case.precision,
        callers=case.callers,
        images=case.images,
        images_per_second=rate,
        of_ceiling=rate / throughput,
        of_the_rest=rate / throughput / (1 - load.client_cpu / load.seconds / cores),
        p50_ms=p50,
        p99_ms=p99,
        of_lone=p50 / lone_ms if lone else None,
        server_cpu_ms=1e3 * load.server_cpu / load.seconds / rate,
        client_cpu_ms=1e3 * load.client_cpu / load.seconds / rate,
        memory_mib=memory,
        disturbance=max(abs(before[0] - after[0]) / throughput, 1 - busy),
    )


def _ceilings(ceiling: Ceiling, durations: Durations, *, lone: bool) -> tuple[float, float, float]:
    """Return images/s, the CPU share, and milliseconds of a lone image or NaN."""
    rate, busy = ceiling.throughput(durations.ceiling)
    return rate, busy, ceiling.lone_ms(durations.ceiling / 2) if lone else float("nan")
