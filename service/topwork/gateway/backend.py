"""The gRPC server as the gateway calls it: one channel, and the metadata of each call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from starlette.requests import Request

from topwork.client import async_calls, calls
from topwork.client.credentials import Credentials, Metadata
from topwork.client.server_status import ServerStatus
from topwork.errors import InvalidInput, Unauthenticated
from topwork.gateway.inbox import ClientLeft, Inbox
from topwork.gateway.methods import Method
from topwork.wire import forwarding

T = TypeVar("T")
Rpc: TypeAlias = Any
"""A call of grpc.aio in progress."""

TIMEOUT = "x-server-timeout"
"""Header with the time limit of a request in seconds, as Google's APIs have it."""
GRPC_TIMEOUT = "grpc-timeout"
"""Header with the time limit in gRPC's form, such as ``500m``."""

_SECONDS = re.compile(r"\d{1,8}(?:\.\d{1,9})?")
_GRPC_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_VISIBLE = re.compile(r"[ -~]*")
_PASSED_ON = ("traceparent", "tracestate")


class Backend:
    """The server behind the gateway. Use it in one event loop, after ``start``."""

    def __init__(self, address: str, credentials: Credentials, secret: str = "") -> None:
        """Take the ``secret`` with which the server believes the addresses of callers."""
        self._address = address
        self._credentials = credentials
        self._secret = secret
        self._channel: grpc.aio.Channel | None = None
        self._callables: dict[str, Any] = {}
        self.stopping = asyncio.Event()
        """Set when the gateway stops: streams that only watch end."""

    def start(self) -> None:
        """Open the channel, which connects when it is used."""
        self._channel = async_calls.open_channel(self._address, self._credentials)

    async def aclose(self) -> None:
        """Cancel all calls."""
        if self._channel is not None:
            await self._channel.close()

    def begin(
        self,
        method: Method,
        sent: Message | Sending,
        request: Request,
        timeout: float | None = None,
    ) -> Rpc:
        """Begin a call with one message, or a stream of them. Raises InvalidInput.

        ``timeout`` in seconds; None: that of the request's headers.
        """
        call = self._callable(method)(
            sent, metadata=self.metadata(request), timeout=timeout or timeout_of(request)
        )
        if isinstance(sent, Sending):
            sent.observe(call)
        return call

    def metadata(self, request: Request) -> Metadata:
        """Return the metadata of the call that answers ``request``. Raises Unauthenticated."""
        headers = request.headers
        metadata = [
            (name, value)
            for name in _PASSED_ON
            if (value := headers.get(name)) is not None and _VISIBLE.fullmatch(value)
        ]
        if (authorization := headers.get("authorization")) is not None:
            if not _VISIBLE.fullmatch(authorization):  # gRPC's error would show it
                raise Unauthenticated("the authorization header has characters that no token has")
            metadata.append(("authorization", authorization))
        if self._secret and request.client is not None:
            peer = forwarding.peer(request.client.host)
            metadata += [(forwarding.SECRET_KEY, self._secret), (forwarding.PEER_KEY, peer)]
        return tuple(metadata)

    def _callable(self, method: Method) -> Any:
        known = self._callables.get(method.rpc)
        if known is None:
            assert self._channel is not None, "it was started"
            kind = f"{_kind(method.reads_stream)}_{_kind(method.writes_stream)}"
            known = self._callables[method.rpc] = getattr(self._channel, kind)(
                method.rpc,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return known


class Sending:
    """Messages of a stream on their way to the server; remembers the error that ends them."""

    def __init__(self, messages: AsyncIterator[Message]) -> None:
        self._messages = messages
        self._failure: Exception | None = None
        self._call: Rpc = None
        self._status: ServerStatus | None = None

    def observe(self, call: Rpc) -> None:
        """Take the call that sends the messages."""
        self._call = call
        self._status = ServerStatus(call)

    async def __aiter__(self) -> AsyncIterator[Message]:
        try:
            async for message in self._messages:
                yield message
        except Exception as error:  # gRPC would report it as a cancellation
            self._failure = error
            self._call.cancel()

    def check(self) -> None:
        """Raise the error that ended the stream, if there is one."""
        if self._failure is not None:
            raise self._failure

    async def error_of(self, error: grpc.RpcError) -> grpc.RpcError:
        """Return the error with the status that the server gave."""
        return error if self._status is None else await self._status.of(error)


async def finish(awaited: Awaitable[T], inbox: Inbox, sending: Sending | None = None) -> T:
    """Return what a call returns; cancel it when the client leaves.

    Raises CallFailed, ClientLeft, and the error of the stream that is sent.
    """
    call = asyncio.ensure_future(awaited)
    gone = asyncio.create_task(inbox.left(), name="left")
    try:
        await asyncio.wait((call, gone), return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            raise ClientLeft
        return await result_of(call, sending)
    finally:
        gone.cancel()
        call.cancel()


async def result_of(call: asyncio.Future[T], sending: Sending | None) -> T:
    """Return the result of a call that is done; raises as ``finish``."""
    try:
        return call.result()
    except asyncio.CancelledError:
        if sending is not None:
            sending.check()
        raise
    except grpc.RpcError as error:
        if sending is not None:
            error = await sending.error_of(error)
        raise calls.failed(error) from error


def timeout_of(request: Request) -> float | None:
    """Return the time limit in a request's headers in seconds. Raises InvalidInput."""
    if (text := request.headers.get(TIMEOUT)) is not None:
        if not _SECONDS.fullmatch(text) or not float(text):
            raise InvalidInput(
                f"{TIMEOUT} is {text[:80]!r}; it must be a positive number of seconds",
                field=TIMEOUT,
            )
        return float(text)
    if (text := request.headers.get(GRPC_TIMEOUT)) is not None:
        if (match := _GRPC_TIMEOUT.fullmatch(text)) is None:
            raise InvalidInput(
                f"{GRPC_TIMEOUT} is {text[:80]!r}; it must be such as 500m or 10S",
                field=GRPC_TIMEOUT,
            )
        return int(match[1]) * _UNITS[match[2]]
    return None


def _kind(is_stream: bool) -> str:
    return "stream" if is_stream else "unary"
