"""The benchmark's own gRPC connection says what grpcio's server answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from benchmarks.serving.http2 import Connection, Failed


class Servicer:
    """Answers with the message, fails, or never answers."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def answer(
        self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        """Do what the message says."""
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
    """Yield a connection to a server of the loopback."""
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


def test_answers_of_all_sizes_come_to_their_callers() -> None:
    """Empty, small, and larger than any window, many at a time."""

    async def main() -> None:
        async with connected() as (connection, _, _):
            messages = [bytes([number]) * (number**2 * 4000) for number in range(24)]
            assert await asyncio.gather(*map(connection.call, messages)) == messages

    asyncio.run(main())


def test_a_status_is_raised() -> None:
    """Also where it comes with trailers of like names; the connection goes on."""

    async def main() -> None:
        async with connected() as (connection, _, _):
            with pytest.raises(Failed, match="full") as caught:
                await connection.call(b"fail")
            assert caught.value.status == 8
            assert await connection.call(b"more") == b"more"

    asyncio.run(main())


def test_a_method_that_is_not_there() -> None:
    """It is UNIMPLEMENTED."""

    async def main() -> None:
        async with connected("/Echo/Nothing") as (connection, _, _):
            with pytest.raises(Failed) as caught:
                await connection.call(b"x" * 200_000)
            assert caught.value.status == 12

    asyncio.run(main())


def test_a_caller_that_goes_cancels_the_call() -> None:
    """The server hears of it, and other calls go on."""

    async def main() -> None:
        async with connected() as (connection, servicer, _):
            waiting = asyncio.create_task(connection.call(b"wait"))
            assert await connection.call(b"one") == b"one"
            waiting.cancel()
            await servicer.cancelled.wait()
            assert await connection.call(b"two") == b"two"

    asyncio.run(main())


def test_a_server_that_goes_fails_what_waits() -> None:
    """And what is called later."""

    async def main() -> None:
        async with connected() as (connection, _, server):
            waiting = asyncio.create_task(connection.call(b"wait"))
            assert await connection.call(b"one") == b"one"
            await server.stop(None)
            with pytest.raises(Failed):
                await waiting
            await connection.closed.wait()
            with pytest.raises(Failed, match="closed"):
                await connection.call(b"two")

    asyncio.run(main())
