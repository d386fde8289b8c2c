"""Spans of calls, stages and micro-batches."""

from __future__ import annotations

import time
from contextvars import copy_context
from types import SimpleNamespace
from typing import cast

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from topwork.errors import ImageError
from topwork.rpc.spans import Spans, open_spans
from topwork.serving.classify_batch import Finished, Timings
from topwork.serving.encoders.encoder import MicroBatch
from topwork.serving.registry import Snapshot
from topwork.serving.request_batch import ImageOutcome

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("other-bin", b"x"))
PATH = "/topwork.v1.ClassifierService/Classify"


@pytest.fixture
def made() -> tuple[Spans, InMemorySpanExporter]:
    """Return spans and where they end."""
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(provider), exporter


def finished(*runs: MicroBatch) -> Finished:
    """Return what is known of one image that took 10 ms."""
    manifest = SimpleNamespace(model="flowers", revision=7)
    return Finished(
        snapshot=cast("Snapshot", SimpleNamespace(manifest=manifest)),
        outcomes=[ImageOutcome(result=ImageError("no image"), waited=0.004, decoded=0.002)],
        scores=None,
        timings=Timings(queue=0.004, decode=0.002, backbone=0.003, head=0.001, total=0.01),
        runs=frozenset(runs),
    )


def call(spans: Spans, *answers: Finished, code: grpc.StatusCode = grpc.StatusCode.OK) -> None:
    """Answer a call, in a context of its own as gRPC does."""

    def answer() -> None:
        span = spans.begin(PATH, SENT)
        for answer in answers:
            spans.answered(answer, time.perf_counter() - 0.01)
        spans.end(span, code, principal="line-3", reason="OVERLOADED")

    copy_context().run(answer)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Return the spans of a name."""
    return [span for span in exporter.get_finished_spans() if span.name == name]


def test_span_of_a_call_belongs_to_the_clients_trace(
    made: tuple[Spans, InMemorySpanExporter],
) -> None:
    """The span is a child of the one in ``traceparent``, and names the method and the principal."""
    spans, exporter = made
    call(spans)
    (span,) = exporter.get_finished_spans()
    assert span.name == PATH[1:]
    assert f"{span.get_span_context().trace_id:032x}" == TRACE  # type: ignore[union-attr]  # it has one
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.attributes is not None
    assert span.attributes["rpc.method"] == "Classify"
    assert span.attributes["rpc.grpc.status_code"] == 0
    assert span.attributes["enduser.id"] == "line-3"
    assert span.status.is_ok or span.status.is_unset


def test_span_of_a_failed_call_has_the_reason(made: tuple[Spans, InMemorySpanExporter]) -> None:
    """The reason contains no value of the request."""
    spans, exporter = made
    call(spans, code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    (span,) = exporter.get_finished_spans()
    assert (span.status.is_ok, span.status.description) == (False, "OVERLOADED")


def test_each_stage_has_a_span(made: tuple[Spans, InMemorySpanExporter]) -> None:
    """Spans of stages are children of the call's span, in sequence, as long as the timings."""
    spans, exporter = made
    call(spans, finished())
    (above,) = named(exporter, PATH[1:])
    assert above.attributes is not None
    assert above.attributes["topwork.model"] == "flowers"
    assert above.attributes["topwork.revision"] == 7
    end = None
    for stage, seconds in (
        ("queue", 0.004),
        ("decode", 0.002),
        ("backbone", 0.003),
        ("head", 0.001),
    ):
        (span,) = named(exporter, stage)
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(seconds, abs=1e-6)
        assert end is None or span.start_time == end
        assert abs(span.start_time / 1e9 - time.time()) < 60
        assert span.parent is not None
        assert span.parent.span_id == above.get_span_context().span_id  # type: ignore[union-attr]  # it has one
        end = span.end_time


def test_backbone_spans_link_to_the_micro_batch(
    made: tuple[Spans, InMemorySpanExporter],
) -> None:
    """A micro-batch is one span without a parent; the backbone span of each request links to it."""
    spans, exporter = made
    run = MicroBatch(start=time.perf_counter(), seconds=0.006, images=2)
    call(spans, finished(run))
    call(spans, finished(run))
    (shared,) = named(exporter, "micro-batch")
    assert shared.parent is None
    assert shared.attributes is not None
    assert shared.attributes["topwork.images"] == 2
    for span in named(exporter, "backbone"):
        assert [link.context for link in span.links] == [shared.get_span_context()]
    assert len(named(exporter, "backbone")) == 2
    assert not any(span.links for span in named(exporter, "head"))


def test_spans_are_off_without_a_collector() -> None:
    """Without an endpoint no OpenTelemetry package is imported."""
    assert open_spans("") is None
