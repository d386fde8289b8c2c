"""What happens around every call: the error table, metrics and one access line."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog

from topwork.errors import Overloaded, TopworkError
from topwork.rpc import status as statuses
from topwork.telemetry import Telemetry

log = structlog.get_logger("topwork.access")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Interceptor(grpc.aio.ServerInterceptor):
    """One interceptor for all calls, since stacks of several break each other."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self._wrapped: dict[str, Handler] = {}
        self._in_flight = 0
        self.idle = asyncio.Event()
        """Set while no call is in flight."""
        self.idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the handler of a call, wrapped."""
        method = handler_call_details.method
        if (known := self._wrapped.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        ours = ("/topwork.v1.", "/google.longrunning.", "/inference.")
        if handler is None or not method.startswith(ours):
            return handler  # health and reflection follow their own rules
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        wrap = _wrap_stream if handler.response_streaming else _wrap_unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            wrap(getattr(handler, kind), _Method(method, self)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        self._wrapped[method] = wrapped
        return wrapped

    def begin(self) -> None:
        """Note that a call begins."""
        self._in_flight += 1
        self.idle.clear()

    def end(self) -> None:
        """Note that a call ends."""
        self._in_flight -= 1
        if not self._in_flight:
            self.idle.set()


class _Method:
    """A method's name and metrics."""

    def __init__(self, path: str, interceptor: Interceptor) -> None:
        _, service, name = path.split("/")
        telemetry = interceptor.telemetry
        self.path = path
        self.begin = interceptor.begin
        self._end = interceptor.end
        self._seconds = telemetry.call_seconds.labels(service, name)
        self._codes = {
            code: telemetry.calls.labels(service, name, code.name) for code in grpc.StatusCode
        }

    def end(self, code: grpc.StatusCode, seconds: float) -> None:
        """Note a call's end."""
        self._end()
        self._codes[code].inc()
        self._seconds.observe(seconds)


def _wrap_unary(behaviour: Callable[..., Awaitable[Any]], method: _Method) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        async with _Call(method, context):
            return await behaviour(request, context)

    return call


def _wrap_stream(
    behaviour: Callable[..., AsyncIterator[Any]], method: _Method
) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        async with _Call(method, context):
            async for response in behaviour(request, context):
                yield response

    return call


class _Call:
    """The frame of one call: turns errors into statuses, then logs one line."""

    def __init__(self, method: _Method, context: Context) -> None:
        self._method = method
        self._context = context
        self._start = 0.0

    async def __aenter__(self) -> None:
        self._start = time.perf_counter()
        self._method.begin()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        fields: dict[str, Any] = {}
        status = None
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            code = self._gone()
        elif isinstance(error, TopworkError):
            status = statuses.from_error(error)
            fields = {"reason": error.reason, "error": str(error)}
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            log.error("unexpected error", method=self._method.path, exc_info=error)
            status = statuses.internal()
        else:
            code = grpc.StatusCode.OK
        if status is not None:
            code = _CODES[status.code]
        seconds = time.perf_counter() - self._start
        self._method.end(code, seconds)
        log.info(
            "call",
            method=self._method.path,
            code=code.name,
            milliseconds=round(seconds * 1e3, 2),
            peer=self._context.peer(),
            **fields,
        )
        if status is not None:
            trailers = [(statuses.DETAILS_KEY, status.SerializeToString())]
            if isinstance(error, Overloaded):
                # gRPC's own retries know no RetryInfo.
                milliseconds = math.ceil(error.retry_after * 1e3)
                trailers.append((statuses.PUSHBACK_KEY, str(milliseconds)))
            await self._context.abort(code, status.message, tuple(trailers))

    def _gone(self) -> grpc.StatusCode:
        """Return why the client has gone: a deadline reaches the server as a cancellation, too.

        The wire rounds deadlines up by about a hundredth, so the client's comes first.
        """
        remaining = self._context.time_remaining()
        elapsed = time.perf_counter() - self._start
        if remaining is not None and remaining <= 0.02 * elapsed:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return grpc.StatusCode.CANCELLED
