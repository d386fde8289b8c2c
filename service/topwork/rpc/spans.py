"""Spans of OpenTelemetry: one a call, one a stage of Classify, one a micro-batch.

Needs the extra ``otel``. OpenTelemetry's own environment variables configure sampling and export
(OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, ...).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import grpc

from topwork.errors import NotReady
from topwork.serving.classify_batch import Finished
from topwork.serving.encoders.encoder import MicroBatch
from topwork.wire.loopback import is_loopback

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext

IncomingMetadata: TypeAlias = Iterable[tuple[str, str | bytes]]


class Spans:
    """Makes the spans of a process."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("topwork")
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._runs: WeakKeyDictionary[MicroBatch, SpanContext] = WeakKeyDictionary()
        self._epoch = time.time_ns() - time.perf_counter_ns()

    def begin(self, path: str, metadata: IncomingMetadata) -> Span:
        """Begin a call's span, the parent of the other spans of this task."""
        from opentelemetry import context

        _, service, method = path.split("/")
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            path[1:],
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        # Never detached: the task, and its context with it, end with the call.
        context.attach(self._trace.set_span_in_context(span))
        return span

    def end(self, span: Span, code: grpc.StatusCode, *, principal: str, reason: str) -> None:
        """End a call's span."""
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if principal:
            span.set_attribute("enduser.id", principal)
        if code is not grpc.StatusCode.OK:
            span.set_status(self._trace.StatusCode.ERROR, reason or code.name)
        span.end()

    def answered(self, finished: Finished, start: float) -> None:
        """Make the spans of the stages that began at ``start``; see Trace.

        Decoding and backbone times are sums over the images of a request, which overlap. So with
        several images the spans of these stages show durations, not moments.
        """
        call = self._trace.get_current_span()
        if not call.is_recording():
            return
        call.set_attributes(
            {
                "topwork.model": finished.snapshot.manifest.model,
                "topwork.revision": finished.snapshot.manifest.revision,
                "topwork.images": len(finished.outcomes),
            }
        )
        timings, at = finished.timings, start
        for name, seconds in (
            ("queue", timings.queue),
            ("decode", timings.decode),
            ("backbone", timings.backbone),
            ("head", timings.head),
        ):
            links = [self._trace.Link(self._span_of(run)) for run in finished.runs]
            span = self._tracer.start_span(
                name, start_time=self._nanoseconds(at), links=links if name == "backbone" else ()
            )
            at += seconds
            span.end(self._nanoseconds(at))

    def close(self) -> None:
        """Export the spans that are not exported yet."""
        self._provider.shutdown()

    def _span_of(self, run: MicroBatch) -> SpanContext:
        """Return the span of a micro-batch, made for the first traced request of it."""
        known = self._runs.get(run)
        if known is None:
            span = self._tracer.start_span(
                "micro-batch",
                context=self._trace.set_span_in_context(self._trace.INVALID_SPAN),
                start_time=self._nanoseconds(run.start),
                attributes={"topwork.images": run.images},
            )
            span.end(self._nanoseconds(run.start + run.seconds))
            known = self._runs[run] = span.get_span_context()
        return known

    def _nanoseconds(self, at: float) -> int:
        """Return a moment of time.perf_counter() as nanoseconds since 1970."""
        return self._epoch + round(at * 1e9)


def open_spans(endpoint: str) -> Spans | None:
    """Return Spans that export to a collector, such as http://127.0.0.1:4318; None without one.

    Raises NotReady if OpenTelemetry is not installed.
    """
    if not endpoint:
        return None
    try:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise NotReady("spans need the extra: topwork[otel]") from error
    named = Resource({SERVICE_NAME: "topwork"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    session = requests.Session()
    # A proxy of the environment cannot reach a collector on the loopback.
    session.trust_env = not is_loopback(f"{urlsplit(endpoint).hostname}:0")
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Spans(provider)
