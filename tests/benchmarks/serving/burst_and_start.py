"""Latency right after a burst of requests, and start-up time of the server."""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.serving import client
from benchmarks.serving.client import Endpoint
from benchmarks.serving.processes import free_port
from benchmarks.serving.tables import Table
from benchmarks.serving.workload import CLASSIFY, Workload, decode, requests

LONE = 20
"""Number of measured requests, one after the other."""
BURST_CALLERS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Latency of lone requests before and right after a burst of many callers."""

    burst_seconds: float
    p50_ms_before: float
    p50_ms_after: float
    first_ms_after: float
    """Latency of the first request after the burst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Time from exec to the health status SERVING, with warm file caches."""

    models: int
    starts: int
    median_seconds: float
    longest_seconds: float


def measure_burst(address: str, workload: Workload, *, seconds: float) -> Burst:
    """Measure a running server."""
    endpoint = Endpoint(address=address, path=CLASSIFY)
    bodies = requests(workload.photos, ["int8"])

    async def alone() -> list[float]:
        times = []
        async with client.connected(endpoint, 1) as (call,):
            for number in range(2 * LONE):
                start = time.perf_counter()
                decode(await call(bodies[number % len(bodies)]))
                times.append(1e3 * (time.perf_counter() - start))
        return times

    async def burst() -> list[float]:
        await client.closed_loop(
            endpoint,
            bodies,
            decode,
            callers=BURST_CALLERS,
            seconds=seconds,
            server_cpu=lambda: 0.0,
        )
        return await alone()

    before = client.run(alone())[LONE:]
    after = client.run(burst())[:LONE]
    return Burst(
        burst_seconds=seconds,
        p50_ms_before=statistics.median(before),
        p50_ms_after=statistics.median(after),
        first_ms_after=after[0],
    )


def measure_start(repository: Path, log: Path, *, models: int, starts: int) -> Start:
    """Start and stop the server ``starts`` times."""
    seconds = [_start(repository, log) for _ in range(starts)]
    return Start(
        models=models,
        starts=starts,
        median_seconds=statistics.median(seconds),
        longest_seconds=max(seconds),
    )


def burst_table(rows: Sequence[Burst]) -> Table:
    """Return the measurements as a table."""
    titles = ["burst of 128 callers, s", "p50 before, ms", "p50 after, ms", "after over before"]
    lines = [
        [
            f"{row.burst_seconds:.1f}",
            f"{row.p50_ms_before:.1f}",
            f"{row.p50_ms_after:.1f}",
            f"{row.p50_ms_after / row.p50_ms_before:.2f}",
            f"{row.first_ms_after:.1f}",
        ]
        for row in rows
    ]
    return Table(name="burst", titles=[*titles, "first after, ms"], lines=lines, records=rows)


def start_table(rows: Sequence[Start]) -> Table:
    """Return the measurements as a table."""
    lines = [
        [f"{row.models:,}", f"{row.median_seconds:.2f}", f"{row.longest_seconds:.2f}"]
        for row in rows
    ]
    return Table(
        name="start", titles=["models", "median s", "longest s"], lines=lines, records=rows
    )


def _start(repository: Path, log: Path) -> float:
    port = free_port()
    command = [sys.executable, "-m", "topwork.cli", "serve", "--repository", str(repository)]
    command += ["--address", f"127.0.0.1:{port}"]
    start = time.perf_counter()
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            while not _serving(port):
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended; its log:\n{log.read_text()}")
                time.sleep(0.005)
            return time.perf_counter() - start
        finally:
            process.send_signal(signal.SIGTERM)


def _serving(port: int) -> bool:
    # A failed gRPC channel waits a second before it reconnects, so try a socket first.
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        contextlib.suppress(grpc.RpcError),
    ):
        request = health_pb2.HealthCheckRequest()
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return False
