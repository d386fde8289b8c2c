"""Load generator with a low cost on the cores that it shares with the server.

Bodies are encoded before the clock starts, answers are decoded and checked. The client's cost of a
call with a 20 KB body is in docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import uvloop

from benchmarks.serving.http2 import Connection

T = TypeVar("T")
Call = Callable[[bytes], Awaitable[bytes]]
"""Sends an encoded request and returns the encoded answer."""
Check = Callable[[bytes], object]
"""Decodes an answer; raises if anything in it is an error."""

WARM_UP_SECONDS = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Address, path and credentials of a server's method."""

    address: str
    """HOST:PORT"""
    path: str
    """Path of the HTTP resource or of the gRPC method."""
    transport: Literal["grpc", "http"] = "grpc"
    content_type: str = "image/jpeg"
    """Content type of HTTP requests."""
    tls: ssl.SSLContext | None = None
    """TLS of gRPC; None is plaintext."""
    token: str = ""
    """Bearer token of gRPC calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Measurements of a closed loop after its warm-up."""

    calls_per_second: float
    latencies: list[float]
    """Seconds of each finished call."""
    seconds: float
    client_cpu: float
    """CPU seconds of this process."""
    server_cpu: float


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` on uvloop, without garbage collection, whose pauses would count as latency."""
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    finally:
        gc.enable()


async def closed_loop(
    endpoint: Endpoint,
    bodies: Sequence[bytes],
    check: Check,
    *,
    callers: int,
    seconds: float,
    server_cpu: Callable[[], float],
) -> Load:
    """Let each of ``callers`` send its next request when the last is answered."""
    ended: list[tuple[float, float]] = []
    stopping = False

    async def repeat(call: Call, offset: int, delay: float) -> None:
        await asyncio.sleep(delay)  # spreads connections over workers that share a port
        while not stopping:
            start = time.perf_counter()
            check(await call(bodies[offset % len(bodies)]))
            end = time.perf_counter()
            ended.append((end, end - start))
            offset += 1

    async with connected(endpoint, callers) as calls, asyncio.TaskGroup() as group:
        for number, call in enumerate(calls):
            group.create_task(repeat(call, number * 7, WARM_UP_SECONDS / 2 * number / callers))
        await asyncio.sleep(WARM_UP_SECONDS)
        cpu, spent, start = server_cpu(), time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        end, spent, cpu = time.perf_counter(), time.process_time() - spent, server_cpu() - cpu
        stopping = True
    latencies = [latency for at, latency in ended if start < at <= end]
    return Load(
        calls_per_second=len(latencies) / (end - start),
        latencies=latencies,
        seconds=end - start,
        client_cpu=spent,
        server_cpu=cpu,
    )


@contextlib.asynccontextmanager
async def connected(endpoint: Endpoint, callers: int) -> AsyncIterator[list[Call]]:
    """Yield a call function for each caller: one shared gRPC connection, or an HTTP one each."""
    made: list[Connection | _Http]
    if endpoint.transport == "grpc":
        shared = await Connection.connect(
            endpoint.address, endpoint.path, tls=endpoint.tls, token=endpoint.token
        )
        made = [shared] * callers
    else:
        made = [_Http(endpoint) for _ in range(callers)]
    try:
        yield [connection.call for connection in made]
    finally:
        for connection in made:
            connection.close()


class _Http:
    """Keep-alive HTTP/1.1 connection without a library, opened at the first call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._address = endpoint.address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._start = (
            f"POST {endpoint.path} HTTP/1.1\r\nHost: {endpoint.address}\r\n"
            f"Content-Type: {endpoint.content_type}\r\nContent-Length: "
        ).encode()

    async def call(self, body: bytes) -> bytes:
        if self._streams is None:
            host, _, port = self._address.partition(":")
            self._streams = await asyncio.open_connection(host, int(port))
        reader, writer = self._streams
        writer.write(b"%b%d\r\n\r\n%b" % (self._start, len(body), body))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, length = head.partition(b"\r\ncontent-length:")
        answer = await reader.readexactly(int(length.partition(b"\r\n")[0]))
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(f"{self._address} answered {head[:60]!r}: {answer[:300]!r}")
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
