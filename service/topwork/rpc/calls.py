"""Calls of the server: access, status of errors, limits, metrics, spans, one log line each."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

import grpc
import structlog
from google.longrunning import operations_pb2
from google.protobuf.message import DecodeError

from topwork.access import principals
from topwork.access.access_file import Access
from topwork.access.principals import Caller, host
from topwork.access.rules import OPEN, RULES, UNCOUNTED
from topwork.access.slots import Slots
from topwork.errors import Forbidden, InvalidInput, Overloaded, TopworkError
from topwork.rpc.context import Context
from topwork.rpc.forwarding import Forwarding
from topwork.rpc.reading import Reading
from topwork.rpc.spans import Spans
from topwork.rpc.trace import trace_id
from topwork.telemetry import Telemetry
from topwork.v1 import review_service_pb2 as review_pb
from topwork.wire import status as statuses

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger("topwork.access")

MOST_CALLS = 8192
"""Raising it allows more concurrent calls; each takes about 20 KB."""

RETRY_SECONDS = 1.0
"""Delay after which a client that was refused for too many calls may try again."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Calls:
    """State that all calls of a server share."""

    def __init__(
        self,
        telemetry: Telemetry,
        access: Access,
        spans: Spans | None = None,
        forwarding: Forwarding | None = None,
    ) -> None:
        self.telemetry = telemetry
        self.access = access
        self.spans = spans
        self.forwarding = forwarding or Forwarding()
        self.reading = Reading()
        self.slots = _slots()
        self.open_slots = _slots()
        """Slots of methods that need no authentication, which so take none of the others."""
        self._in_flight = 0
        self.idle = asyncio.Event()
        """Set while no call is in flight."""
        self.idle.set()

    def begin(self) -> None:
        """Count a call that begins."""
        self._in_flight += 1
        self.idle.clear()

    def end(self) -> None:
        """Count a call that ends."""
        self._in_flight -= 1
        if not self._in_flight:
            self.idle.set()


class Method:
    """A method's name, rule and metrics."""

    def __init__(self, path: str, calls: Calls) -> None:
        _, service, name = path.split("/")
        telemetry = calls.telemetry
        self.path = path
        self.rule = RULES.get(path)
        self.is_open = path.startswith(OPEN)
        self.counts = not path.startswith(UNCOUNTED)
        self.reading = calls.reading
        self.slots = calls.open_slots if self.is_open else calls.slots
        self.access = calls.access
        self.forwarding = calls.forwarding
        self.spans = calls.spans if self.counts else None
        self.begin = calls.begin
        self._end = calls.end
        if not self.counts:
            return
        self._seconds = telemetry.call_seconds.labels(service, name)
        self._codes = {
            code: telemetry.calls.labels(service, name, code.name) for code in grpc.StatusCode
        }

    def end(self, code: grpc.StatusCode, seconds: float) -> None:
        """Count a call that ends, with its status and duration."""
        self._end()
        self._codes[code].inc()
        self._seconds.observe(seconds)


class Call:
    """One call: checks access, turns errors into statuses, then logs one line."""

    def __init__(self, method: Method, context: Context) -> None:
        self._method = method
        self._context = context
        self._metadata = context.invocation_metadata() or ()
        self._peer = method.forwarding.peer(self._metadata, context.peer())
        self._start = 0.0
        self._caller: Caller | None = None
        self._share = host(self._peer)
        self._has_slot = False
        self._admitted = False
        self._images = 0
        self._operation = ""
        self._span: Span | None = None

    async def __aenter__(self) -> Self:
        self._start = time.perf_counter()
        if self._method.counts:
            self._method.begin()
        if self._method.spans is not None:
            self._span = self._method.spans.begin(self._method.path, self._metadata)
        return self

    def admit(self) -> None:
        """Check access and take a slot. Raises Unauthenticated, Forbidden, Overloaded."""
        method = self._method
        if not method.is_open:
            if method.rule is None:
                raise Forbidden(f"{method.path} has no rule, so nobody may call it")
            self._caller = method.access.caller(
                method.rule.role, self._metadata, self._context.auth_context, self._peer
            )
            self._caller.check_role()
            self._share = self._caller.share
        method.slots.take(self._share)
        self._has_slot = True
        if self._caller is not None:
            self._caller.principal.limiter.begin()
            self._admitted = True
            principals.set_caller(self._caller)

    async def read(self) -> Any:
        """Return the one request. Raises InvalidInput, Forbidden, Overloaded."""
        request = await self._next()
        if request is grpc.aio.EOF:  # gRPC has sent the status of a message that is too long
            raise InvalidInput("the call has no message, or one that is too long", field="request")
        return request

    async def each(self) -> AsyncIterator[Any]:
        """Yield the requests of a stream. Raises InvalidInput, Unauthenticated, Forbidden."""
        while (request := await self._next()) is not grpc.aio.EOF:
            yield request

    async def _next(self) -> Any:
        try:
            request = await self._method.reading.take(self._context.read(), self._share)
        except DecodeError as error:
            raise InvalidInput(
                f"the message cannot be decoded: {error}", field="request"
            ) from error
        if request is not grpc.aio.EOF and self._caller is not None:
            self._check(request, self._caller)
        return request

    def respond(self, response: Any) -> Any:
        """Return the response, after noting its operation for the audit log."""
        if isinstance(response, operations_pb2.Operation):
            self._operation = response.name
        elif isinstance(response, review_pb.LabelCandidatesResponse):
            self._operation = " ".join(operation.name for operation in response.operations)
        return response

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        fields: dict[str, Any] = {}
        status = None
        if isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.BaseError):
            code = self._client_left()  # BaseError: gRPC's own, such as when the server has stopped
        elif isinstance(error, TopworkError):
            status = statuses.from_error(error)
            fields = {"reason": error.reason, "error": str(error)}
        elif isinstance(error, Exception):
            log.error("unexpected error", method=self._method.path, exc_info=error)
            status = statuses.internal()
        else:
            code = grpc.StatusCode.OK
        if status is not None:
            code = _CODES[status.code]
        self._end(code, fields)
        if status is not None:
            trailers = [(statuses.DETAILS_KEY, status.SerializeToString())]
            if isinstance(error, Overloaded):
                # gRPC's own retries ignore RetryInfo.
                milliseconds = math.ceil(error.retry_after * 1e3)
                trailers.append((statuses.PUSHBACK_KEY, str(milliseconds)))
            await self._context.abort(code, status.message, tuple(trailers))

    def _end(self, code: grpc.StatusCode, fields: dict[str, Any]) -> None:
        """Free slots and rate limits, then count and log the call."""
        caller = self._caller
        if self._has_slot:
            self._method.slots.give(self._share)
        if caller is not None and self._admitted:
            caller.principal.limiter.give(self._images)
            caller.principal.limiter.end()
        if not self._method.counts:
            return
        seconds = time.perf_counter() - self._start
        self._method.end(code, seconds)
        principal = caller.principal.name if caller is not None else ""
        if principal:
            fields["principal"] = principal
        trace = trace_id(self._metadata)
        if self._method.spans is not None and self._span is not None:
            trace = f"{self._span.get_span_context().trace_id:032x}"
            self._method.spans.end(
                self._span, code, principal=principal, reason=fields.get("reason", "")
            )
        if trace:
            fields["trace_id"] = trace
        log.info(
            "call",
            method=self._method.path,
            code=code.name,
            milliseconds=round(seconds * 1e3, 2),
            peer=self._peer,
            **fields,
        )
        if self._method.rule is not None and self._method.rule.audited:
            log.info(
                "audit",
                principal=principal,
                method=self._method.path,
                model=caller.model if caller is not None else "",
                operation=self._operation,
                outcome=code.name,
                peer=self._peer,
            )

    def _check(self, request: Any, caller: Caller) -> None:
        """Check access to a message's model. Raises Unauthenticated, Forbidden, Overloaded."""
        rule = self._method.rule
        assert rule is not None, "it was admitted"
        if rule.audited and getattr(request, "name", "").startswith("operations/"):
            self._operation = request.name[:100]
        if rule.model_of is None:
            caller.check_role()
            return
        name = rule.model_of(request)
        if name is not None:
            caller.check(name.removeprefix("models/"))
        elif caller.model:  # named by an earlier message
            caller.check(caller.model)
        images = rule.images(request)
        caller.principal.limiter.take(images)
        self._images += images

    def _client_left(self) -> grpc.StatusCode:
        """Return why the client left: its deadline reaches the server as a cancellation, too.

        gRPC rounds deadlines up by about a hundredth, so the client's expires first.
        """
        remaining = self._context.time_remaining()
        elapsed = time.perf_counter() - self._start
        if remaining is not None and remaining <= 0.02 * elapsed:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return grpc.StatusCode.CANCELLED


def _slots() -> Slots:
    return Slots(MOST_CALLS, calls="calls", reason="TOO_MANY_CALLS", retry_after=RETRY_SECONDS)
