"""Status of a call that the server ends while the client sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from topwork.client import async_calls, server_status
from topwork.client.calls import CallFailed
from topwork.client.server_status import OWN_DETAILS, ServerStatus
from topwork.client.stream_window import StreamWindow
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import model_service_pb2 as model_pb

IMAGE = b"x" * 1_500_000
"""Two of them do not fit into a message of an upload."""

OWN = (grpc.StatusCode.INTERNAL, OWN_DETAILS)
SERVERS = (grpc.StatusCode.UNAUTHENTICATED, "no token")


@pytest.fixture
def refusing() -> Iterator[str]:
    """Yield the address of a server that refuses each call before it reads a message."""

    def refuse(_: object, context: grpc.ServicerContext) -> None:
        context.abort(*SERVERS)

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if details.method.endswith("Many"):
                return grpc.stream_stream_rpc_method_handler(refuse)
            return grpc.stream_unary_rpc_method_handler(refuse)

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


class Call:
    """A call that gets statuses as grpc.aio's does."""

    def __init__(self) -> None:
        self.observe: Any = None
        self.status = OWN

    def add_done_callback(self, observe: Any) -> None:
        """Take the observer."""
        self.observe = observe

    def end(self, status: tuple[grpc.StatusCode, str]) -> grpc.aio.AioRpcError:
        """Set a status, and return the error that would be raised for it."""
        self.status = status
        self.observe(self)
        empty = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(status[0], empty, empty, status[1])

    async def code(self) -> grpc.StatusCode:
        """See grpc.aio, as the others."""
        return self.status[0]

    async def details(self) -> str:
        """See above."""
        return self.status[1]

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """See above."""
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """See above."""
        return grpc.aio.Metadata(("a", "b"))


async def _slow() -> AsyncIterator[bytes]:
    for _ in range(5):
        time.sleep(0.002)  # noqa: ASYNC251 - blocks the loop, so that the refusal overtakes
        await asyncio.sleep(0)
        yield IMAGE


async def _upload(channel: grpc.aio.Channel) -> None:
    method: Any = channel.stream_unary(
        "/test/One", request_serializer=change_pb.AddClassRequest.SerializeToString
    )
    await async_calls.upload(method, change_pb.AddClassRequest(), _slow(), None)


async def _stream(channel: grpc.aio.Channel) -> None:
    method: Any = channel.stream_stream(
        "/test/Many", request_serializer=classify_pb.StreamClassifyRequest.SerializeToString
    )
    limits = model_pb.Limits(
        max_message_bytes=2**24, max_image_bytes=2**23, max_images_per_request=8
    )
    window = StreamWindow("m", limits, revision=0, top_k=0, images_per_message=1, timeout=None)
    async for _ in async_calls.stream(method, _slow(), window):
        pass


@pytest.mark.parametrize("send", [_upload, _stream])
def test_a_refusal_during_sending_is_never_lost(refusing: str, send: Any) -> None:
    """However the event loop is held up, the caller sees what the server said."""

    async def refusals() -> set[str]:
        seen = set()
        async with grpc.aio.insecure_channel(refusing) as channel:
            for _ in range(60):
                with pytest.raises(CallFailed) as failed:
                    await send(channel)
                seen.add(failed.value.code)
        return seen

    assert asyncio.run(refusals()) == {"UNAUTHENTICATED"}


@pytest.mark.parametrize("order", [(SERVERS, OWN), (OWN, SERVERS)], ids=["before", "after"])
def test_the_servers_status_is_taken(order: Any) -> None:
    """Whether it comes before or after grpc.aio's own; with its metadata."""

    async def shown() -> Any:
        call = Call()
        status = ServerStatus(call)
        errors = [call.end(one) for one in order]
        return await status.of(errors[order.index(OWN)])

    error = asyncio.run(shown())
    assert (error.code(), error.details()) == SERVERS
    assert list(error.trailing_metadata()) == [("a", "b")]


def test_grpcs_own_status_is_shown_when_there_is_no_other(monkeypatch: Any) -> None:
    """After a time in which the server's should have come."""
    monkeypatch.setattr(server_status, "WAIT_SECONDS", 0.01)

    async def shown() -> tuple[Any, Any]:
        call = Call()
        status = ServerStatus(call)
        error = call.end(OWN)
        return error, await status.of(error)

    error, taken = asyncio.run(shown())
    assert taken is error
