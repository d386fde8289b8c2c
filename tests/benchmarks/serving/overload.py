"""Load shedding under three times as many requests as the server can answer in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.rpc import code_pb2

from benchmarks.serving import client
from benchmarks.serving.client import Call, Endpoint
from benchmarks.serving.http2 import Failed
from benchmarks.serving.tables import Table
from benchmarks.serving.workload import CLASSIFY, Workload, decode, requests

TIMES = 3
"""Rate of arrivals over the peak throughput of a closed loop."""
PEAK_CALLERS = 32
TIMEOUT = 20.0
"""Client timeout in seconds, much longer than the server's deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """Outcomes of requests in an open loop."""

    deadline_ms: float
    peak: float
    """Images/s of a closed loop of PEAK_CALLERS right before and after."""
    offered: float
    """Requests/s of one image each."""
    goodput: float
    """Answers/s within the deadline, by the client's clock."""
    rejected: int
    rejection_p50_ms: float
    rejection_p99_ms: float
    accepted: int
    """Requests that were answered or ended with DEADLINE_EXCEEDED."""
    missed: int
    """Accepted requests without an answer within the deadline."""
    latest_ms: float
    """Time of the latest answer after its deadline; negative if before it."""
    failed: int
    """Requests with any other status."""
    client_late_p99_ms: float
    """Delay of sending a request in the client: the accuracy of the measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    status: int
    seconds: float
    late: float


def measure(address: str, workload: Workload, *, deadline: float, seconds: float) -> Overload:
    """Measure a server whose ``--max-seconds`` is ``deadline``.

    Only the server has the deadline, so that the client receives the server's status.
    """
    endpoint = Endpoint(address=address, path=CLASSIFY)
    bodies = requests(workload.photos, ["int8"])

    def peak() -> float:
        loop = client.closed_loop(
            endpoint,
            bodies,
            decode,
            callers=PEAK_CALLERS,
            seconds=seconds / 2,
            server_cpu=lambda: 0.0,
        )
        return client.run(loop).calls_per_second

    before = peak()
    rate = TIMES * before
    outcomes = client.run(_open_loop(endpoint, bodies, rate=rate, seconds=seconds))
    mean_peak = (before + peak()) / 2
    good, rejected, expired = (
        [outcome for outcome in outcomes if outcome.status == status]
        for status in (code_pb2.OK, code_pb2.RESOURCE_EXHAUSTED, code_pb2.DEADLINE_EXCEEDED)
    )
    p50, p99 = np.percentile([outcome.seconds for outcome in rejected] or [float("nan")], [50, 99])
    return Overload(
        deadline_ms=1e3 * deadline,
        peak=mean_peak,
        offered=rate,
        goodput=sum(outcome.seconds <= deadline for outcome in good) / seconds,
        rejected=len(rejected),
        rejection_p50_ms=1e3 * p50,
        rejection_p99_ms=1e3 * p99,
        accepted=len(good) + len(expired),
        missed=len(expired) + sum(outcome.seconds > deadline for outcome in good),
        latest_ms=1e3 * (max(outcome.seconds for outcome in good) - deadline),
        failed=len(outcomes) - len(good) - len(rejected) - len(expired),
        client_late_p99_ms=1e3 * float(np.percentile([outcome.late for outcome in outcomes], 99)),
    )


def table(rows: Sequence[Overload]) -> Table:
    """Return the measurements as a table."""
    titles = ["deadline, ms", "peak of a closed loop, images/s", "offered, images/s"]
    titles += ["goodput, images/s", "goodput over peak", "rejected", "rejection p50, ms"]
    titles += ["rejection p99, ms", "accepted", "of them missed", "latest answer, ms past deadline"]
    titles += ["failed otherwise", "client late, p99, ms"]
    lines = [
        [
            f"{row.deadline_ms:.0f}",
            f"{row.peak:.0f}",
            f"{row.offered:.0f}",
            f"{row.goodput:.0f}",
            f"{row.goodput / row.peak:.2f}",
            str(row.rejected),
            f"{row.rejection_p50_ms:.1f}",
            f"{row.rejection_p99_ms:.1f}",
            str(row.accepted),
            str(row.missed),
            f"{row.latest_ms:+.1f}",
            str(row.failed),
            f"{row.client_late_p99_ms:.1f}",
        ]
        for row in rows
    ]
    return Table(name="overload", titles=titles, lines=lines, records=rows)


async def _open_loop(
    endpoint: Endpoint, bodies: Sequence[bytes], *, rate: float, seconds: float
) -> list[_Outcome]:
    """Send ``rate`` requests a second at regular intervals; return their outcomes."""
    outcomes: list[_Outcome] = []

    async def send(call: Call, body: bytes, due: float) -> None:
        start, status = time.perf_counter(), code_pb2.OK
        try:
            async with asyncio.timeout(TIMEOUT):
                decode(await call(body))
        except Failed as error:
            status = error.status
        except TimeoutError:
            status = code_pb2.UNKNOWN
        took = time.perf_counter() - start
        outcomes.append(_Outcome(status=status, seconds=took, late=start - due))

    async with client.connected(endpoint, 1) as (call,), asyncio.TaskGroup() as group:
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            group.create_task(send(call, bodies[number % len(bodies)], due))
    return outcomes
