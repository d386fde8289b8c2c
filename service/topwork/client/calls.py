"""Channel options and the error of a failed call, for both clients."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2

from topwork.client.inputs import Content, to_input
from topwork.errors import TopworkError
from topwork.limits import DEFAULT_LIMITS
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.wire import status as statuses
from topwork.wire.addresses import why_unreachable
from topwork.wire.loopback import is_loopback

SERVICE_CONFIG = Path(__file__).with_name("service_config.json").read_text(encoding="utf-8")
"""Retry policies, in gRPC's form, for any client; docs/clients.md has the reasons."""

OPTIONS = [
    ("grpc.service_config", SERVICE_CONFIG),
    # A load balancer drops connections that are idle for a minute without closing them.
    ("grpc.keepalive_time_ms", 30_000),
    # How long a ping may be unanswered: the host is unreachable.
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # By default a client waits up to two minutes between its attempts to connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # By default a name is resolved again after 30 s at the earliest, and until then no call reaches
    # the server that replaced the last known one. A call's retries take longer than this.
    ("grpc.dns_min_time_between_resolutions_ms", 100),
    ("grpc.max_receive_message_length", DEFAULT_LIMITS.max_message_bytes),
    ("grpc.max_send_message_length", DEFAULT_LIMITS.max_message_bytes),
]


DIRECT = [("grpc.enable_http_proxy", 0)]
"""The options of a channel that uses no proxy."""

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The environment variables of gRPC's proxy; the first that is set wins."""


def options_for(address: str) -> list[tuple[str, Any]]:
    """Return the options of a channel to ``address``; no proxy reaches an address of this host."""
    return OPTIONS + DIRECT if is_loopback(address) else OPTIONS


class CallFailed(TopworkError):
    """The error of a call, an operation or an image.

    ``code`` is the name of a google.rpc.Code such as NOT_FOUND, ``reason`` the stable identifier in
    ErrorInfo, ``message`` the text, ``retry_after`` the seconds after which a retry makes sense (0:
    unknown), ``status`` the server's whole google.rpc.Status.
    """

    def __init__(self, status: status_pb2.Status) -> None:
        known = status.code in code_pb2.Code.values()
        self.code = code_pb2.Code.Name(status.code) if known else "UNKNOWN"
        self.message = status.message
        self.retry_after = statuses.retry_after(status)
        self.status = status
        super().__init__(status.message, reason=statuses.reason(status) or self.code)

    def __reduce__(self) -> tuple[type[CallFailed], tuple[status_pb2.Status]]:
        """Copy by the status: exceptions are copied by their message alone."""
        return type(self), (self.status,)


def classify_request(
    model: str, images: Iterable[Content], revision: int, top_k: int
) -> classify_pb.ClassifyRequest:
    """Return the request of a Classify call."""
    request = classify_pb.ClassifyRequest(model=f"models/{model}", revision=revision, top_k=top_k)
    for image in images:
        add_input(request, image)
    return request


def add_input(request: classify_pb.ClassifyRequest, image: Content) -> None:
    """Add an image or embedding to a request; the server refuses one that has both."""
    if isinstance(image, bytes):
        request.images.append(image)
    else:
        request.inputs.append(to_input(image))


def new_request_id() -> str:
    """Return a new idempotency key, for gRPC's own retries of a call."""
    return str(uuid.uuid4())


def unreachable(address: str, seconds: float, *, tls: bool) -> CallFailed:
    """Return the error of a server that cannot be reached. Blocks for a second at most."""
    proxy = next(filter(os.environ.get, PROXY_VARIABLES), None)
    if proxy is not None and not is_loopback(address):
        why = f"gRPC uses the proxy in {proxy}, unless no_proxy names the host"
    else:
        why = why_unreachable(address, tls=tls)
    text = f"no server answers at {address} within {seconds:g} s{why and ': '}{why}"
    return CallFailed(status_pb2.Status(code=code_pb2.UNAVAILABLE, message=text))


def failed(error: grpc.RpcError) -> CallFailed:
    """Return the error of a failed call of either client."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), "grpc raises nothing else"
    for key, value in error.trailing_metadata() or ():
        if key == statuses.DETAILS_KEY:
            return CallFailed(status_pb2.Status.FromString(value))
    return CallFailed(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))
