"""gRPC connection of the benchmarks, tested against grpcio's server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from benchmarks.serving.http2 import Connection, Failed


class Servicer:
    """Echoes the message, fails, or never answers."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def answer(
        self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        """Fail for b"fail", wait for b"wait", echo any other message."""
        if message == b"fail":
            trailers = (("grpc-status-details-bin", b"x" * 500), ("retry", "1"))
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailers)
        if message == b"wait":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return message


@asynccontextmanager
async def connected(
    path: str = "/Echo/Answer",
) -> AsyncIterator[tuple[Connection, Servicer, grpc.aio.Server]]:
    """Yield a connection to a server on the loopback."""
    servicer = Servicer()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        servicer.answer
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Echo", {"Answer": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = await Connection.connect(f"127.0.0.1:{port}", path)
    try:
        async with asyncio.timeout(10):
            yield connection, servicer, server
    finally:
        connection.close()
        await server.stop(None)


def test_concurrent_calls_get_their_own_answers() -> None:
    """Concurrent messages, empty to larger than any flow-control window, come back unchanged."""

    async def main() -> None:
        async with connected() as (connection, _, _):
            messages = [bytes([number]) * (number**2 * 4000) for number in range(24)]
            assert await asyncio.gather(*map(connection.call, messages)) == messages

    asyncio.run(main())


def test_error_status_is_raised() -> None:
    """A status is raised, also with similarly named trailers; the connection remains usable."""

    async def main() -> None:
        async with connected() as (connection, _, _):
            with pytest.raises(Failed, match="full") as caught:
                await connection.call(b"fail")
            assert caught.value.status == 8
            assert await connection.call(b"more") == b"more"

    asyncio.run(main())


def test_unknown_method_is_unimplemented() -> None:
    """A call of an unknown method fails with UNIMPLEMENTED."""

    async def main() -> None:
        async with connected("/Echo/Nothing") as (connection, _, _):
            with pytest.raises(Failed) as caught:
                await connection.call(b"x" * 200_000)
            assert caught.value.status == 12

    asyncio.run(main())


def test_cancelled_caller_cancels_the_call() -> None:
    """The server sees the cancellation, and other calls succeed."""

    async def main() -> None:
        async with connected() as (connection, servicer, _):
            waiting = asyncio.create_task(connection.call(b"wait"))
            assert await connection.call(b"first") == b"first"
            waiting.cancel()
            await servicer.cancelled.wait()
            assert await connection.call(b"second") == b"second"

    asyncio.run(main())


def test_stopped_server_fails_waiting_and_later_calls() -> None:
    """When the server stops, waiting calls and later calls fail."""

    async def main() -> None:
        async with connected() as (connection, _, server):
            waiting = asyncio.create_task(connection.call(b"wait"))
            assert await connection.call(b"first") == b"first"
            await server.stop(None)
            with pytest.raises(Failed):
                await waiting
            await connection.closed.wait()
            with pytest.raises(Failed, match="closed"):
                await connection.call(b"second")

    asyncio.run(main())
