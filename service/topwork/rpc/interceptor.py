"""Interceptor of every call of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from topwork.access.access_file import Access
from topwork.rpc.calls import Call, Calls, Method
from topwork.rpc.context import Context
from topwork.rpc.forwarding import Forwarding
from topwork.rpc.spans import Spans
from topwork.telemetry import Telemetry

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Interceptor(grpc.aio.ServerInterceptor):
    """One interceptor for all calls: stacks of several interfere with each other."""

    def __init__(
        self,
        telemetry: Telemetry,
        access: Access,
        spans: Spans | None = None,
        forwarding: Forwarding | None = None,
    ) -> None:
        self.calls = Calls(telemetry, access, spans, forwarding)
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler of a call.

        gRPC sees a handler of a request stream, so that a refused request is never read, and long
        ones are read at a limited rate.
        """
        path = handler_call_details.method
        if (known := self._wrapped.get(path)) is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        behaviour = getattr(handler, kind)
        method = Method(path, self.calls)
        wrapped: Handler
        if handler.response_streaming:
            wrapped = grpc.stream_stream_rpc_method_handler(
                _with_many_responses(behaviour, method, reads=handler.request_streaming),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        else:
            wrapped = grpc.stream_unary_rpc_method_handler(
                _with_one_response(behaviour, method, reads=handler.request_streaming),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        self._wrapped[path] = wrapped
        return wrapped


def _with_one_response(
    behaviour: Callable[..., Awaitable[Any]],
    method: Method,
    *,
    reads: bool,
) -> Callable[..., Any]:
    async def call(_: AsyncIterator[Any], context: Context) -> Any:
        async with Call(method, context) as begun:
            begun.admit()
            request = begun.each() if reads else await begun.read()
            return begun.respond(await behaviour(request, context))

    return call


def _with_many_responses(
    behaviour: Callable[..., AsyncIterator[Any]],
    method: Method,
    *,
    reads: bool,
) -> Callable[..., Any]:
    async def call(_: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with Call(method, context) as begun:
            begun.admit()
            request = begun.each() if reads else await begun.read()
            async for response in behaviour(request, context):
                yield response

    return call
