"""What both clients send, and how they read what failed."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.rpc import code_pb2, status_pb2

from topwork.client.source import Source
from topwork.errors import TopworkError
from topwork.limits import DEFAULT_LIMITS
from topwork.printable import encodable
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.wire import status as statuses
from topwork.wire.addresses import why_unreachable
from topwork.wire.loopback import is_loopback

T = TypeVar("T")
P = TypeVar("P", change_pb.AddClassRequest, change_pb.AddExamplesRequest)

MESSAGE_BYTES = 2 * 2**20
"""Images are sent in messages of about this size; a larger image has its own."""

SERVICE_CONFIG = Path(__file__).with_name("service_config.json").read_text(encoding="utf-8")
"""What is tried again, and when; any client may use it. docs/clients.md says why it is so."""

OPTIONS = [
    ("grpc.service_config", SERVICE_CONFIG),
    # A load balancer forgets connections that are silent for a minute, and says nothing.
    ("grpc.keepalive_time_ms", 30_000),
    # For a host that acknowledges nothing. A server that is there and silent has gRPC's 60 s.
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # By default up to two minutes pass until a client looks again whether a server is there.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", DEFAULT_LIMITS.max_message_bytes),
    ("grpc.max_send_message_length", DEFAULT_LIMITS.max_message_bytes),
]


DIRECT = [("grpc.enable_http_proxy", 0)]
"""The option of a channel that no proxy is asked for."""

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The environment variables that name gRPC's proxy; the first that is set counts."""


def options_for(address: str) -> list[tuple[str, Any]]:
    """Return the options of a channel to ``address``: a proxy cannot reach this host's own."""
    return OPTIONS + DIRECT if is_loopback(address) else OPTIONS


class CallFailed(TopworkError):
    """A call or an operation ended with an error; the attributes say which.

    ``code`` is the name of a google.rpc.Code such as NOT_FOUND, ``reason`` the stable identifier in
    ErrorInfo, ``retry_after`` the seconds after which a retry makes sense (0: not said), ``status``
    all that the server said.
    """

    def __init__(self, status: status_pb2.Status) -> None:
        known = status.code in code_pb2.Code.values()
        self.code = code_pb2.Code.Name(status.code) if known else "UNKNOWN"
        self.retry_after = statuses.retry_after(status)
        self.status = status
        super().__init__(status.message, reason=statuses.reason(status) or self.code)


def classify_request(
    model: str, images: Iterable[bytes], revision: int, top_k: int
) -> classify_pb.ClassifyRequest:
    """Return the request of a Classify call."""
    return classify_pb.ClassifyRequest(
        model=f"models/{model}", images=images, revision=revision, top_k=top_k
    )


def add_class_requests(
    model: str,
    label: str,
    images: Iterable[tuple[str, bytes]],
    request_id: str,
    options: change_pb.ChangeOptions | None,
) -> Iterator[change_pb.AddClassRequest]:
    """Yield the messages of an AddClass call."""
    config = change_pb.AddClassConfig(
        model=f"models/{model}",
        label=label,
        request_id=request_id or new_request_id(),
        options=options,
    )
    first = change_pb.AddClassRequest(config=config)
    return _with_images(first, change_pb.AddClassRequest, images)


def add_examples_requests(
    model: str,
    label: str,
    images: Iterable[tuple[str, bytes]],
    request_id: str,
    options: change_pb.ChangeOptions | None,
) -> Iterator[change_pb.AddExamplesRequest]:
    """Yield the messages of an AddExamples call."""
    config = change_pb.AddExamplesConfig(
        model=f"models/{model}",
        label=label,
        request_id=request_id or new_request_id(),
        options=options,
    )
    first = change_pb.AddExamplesRequest(config=config)
    return _with_images(first, change_pb.AddExamplesRequest, images)


def new_request_id() -> str:
    """Return the id of a call that nobody repeats but gRPC itself."""
    return str(uuid.uuid4())


def ask(method: Callable[..., T], request: object, timeout: float | None = None) -> T:
    """Return what a method of a stub answers. Raises CallFailed."""
    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise failed(error) from error


async def ask_async(
    method: Callable[..., Awaitable[T]], request: object, timeout: float | None = None
) -> T:
    """Return what a method of a stub for asyncio answers. Raises as ``ask``."""
    try:
        return await method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise failed(error) from error


def upload(
    method: grpc.StreamUnaryMultiCallable[P, T], requests: Iterator[P], timeout: float | None
) -> T:
    """Return what a method answers to a stream. Raises CallFailed, and what ``requests`` raises."""
    begun = threading.Event()
    source = Source(requests)

    def sent() -> Iterator[P]:  # in a thread of gRPC's
        yield from source
        if not source.exhausted:
            begun.wait()
            call.cancel()  # an end would pass for the upload's own

    with source:
        call: grpc.Future[T] = method.future(sent(), timeout=timeout)
        begun.set()
        try:
            return call.result()
        except grpc.FutureCancelledError as error:
            if source.failure is not None:
                raise source.failure from None
            text = "this process ends before all was sent"
            raise CallFailed(status_pb2.Status(code=code_pb2.CANCELLED, message=text)) from error
        except grpc.RpcError as error:
            raise failed(error) from error
        finally:
            call.cancel()  # for an interrupt


async def upload_async(
    method: grpc.aio.StreamUnaryMultiCallable[P, T], requests: Iterator[P], timeout: float | None
) -> T:
    """See ``upload``."""
    failure: Exception | None = None

    async def sent() -> AsyncIterator[P]:  # gRPC would pass what is raised off as a cancellation
        nonlocal failure
        try:
            for request in requests:
                yield request
        except Exception as error:
            failure = error
            call.cancel()

    call: grpc.aio.StreamUnaryCall[P, T] = method(sent(), timeout=timeout)
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if failure is None or (task is not None and task.cancelling()):
            raise
        raise failure from None
    except grpc.RpcError as error:
        raise failed(error) from error


def _with_images(
    request: P, make: Callable[[], P], images: Iterable[tuple[str, bytes]]
) -> Iterator[P]:
    """Yield ``request`` and as many messages after it as it takes to hold all images."""
    length = 0
    for name, content in images:
        if length and length + len(content) > MESSAGE_BYTES:
            yield request
            request, length = make(), 0
        # The server cuts long names at the end, which is the file's name.
        shown = encodable(name)[-DEFAULT_LIMITS.max_display_name_length :]
        request.images.add(content=content, display_name=shown)
        length += len(content)
    yield request


def unreachable(address: str, seconds: float, *, tls: bool) -> CallFailed:
    """Return the error of a server that cannot be reached. Blocks for a second at most."""
    proxy = next(filter(os.environ.get, PROXY_VARIABLES), None)
    if proxy is not None and not is_loopback(address):
        why = f"gRPC asks the proxy in {proxy}, unless no_proxy names the host"
    else:
        why = why_unreachable(address, tls=tls)
    text = f"no server answers at {address} within {seconds:g} s{why and ': '}{why}"
    return CallFailed(status_pb2.Status(code=code_pb2.UNAVAILABLE, message=text))


def failed(error: grpc.RpcError) -> CallFailed:
    """Return the error of a call that failed, blocking or not."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), "grpc raises nothing else"
    for key, value in error.trailing_metadata() or ():
        if key == statuses.DETAILS_KEY:
            return CallFailed(status_pb2.Status.FromString(value))
    return CallFailed(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))
