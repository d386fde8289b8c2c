"""Prometheus metrics: names, units, counts and times."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support import kinds, tiny
from support.metrics import engine, filled
from support.pictures import picture, pictures

from topwork.access.access_file import Access
from topwork.bundle.store import Repository
from topwork.errors import DeadlinePassed, NotFound, Overloaded
from topwork.inputs.image import Prepared, prepare
from topwork.inputs.kinds import stored_input
from topwork.rpc.interceptor import Interceptor
from topwork.serving.classifier import Classifier
from topwork.serving.encoders import decoding
from topwork.serving.encoders.threads import ITEMS_PER_THREAD
from topwork.telemetry import Telemetry

PHOTO = picture("blue", 40)
MODEL = {"model": "colours"}
STAGES = ("queue", "decode", "backbone", "head")
SERVICE = "topwork.v1.ClassifierService"
HEALTH = "grpc.health.v1.Health"
CLASSIFY = {"grpc_service": SERVICE, "grpc_method": "StreamClassify"}
OWN = ("topwork_", "grpc_server_")
NO_UNIT = re.compile(
    r"(^|_)(ms|milliseconds?|us|micros|minutes?|hours?|kilobytes?|megabytes?|mb|kb|percent)(_|$)"
)


def text(telemetry: Telemetry) -> str:
    """Return the text of a scrape."""
    return generate_latest(telemetry._registry).decode()


def value(telemetry: Telemetry, name: str, labels: dict[str, str] | None = None) -> float | None:
    """Return the value of a series, or None if it does not exist."""
    return telemetry._registry.get_sample_value(name, labels or {})


def observed(
    repository: Repository, scenario: Callable[[Classifier, Telemetry], Awaitable[None]]
) -> Telemetry:
    """Return the metrics after ``scenario`` has used a classifier."""

    async def run() -> Telemetry:
        registry, classifier, telemetry = engine(repository)
        await classifier.start()
        await registry.start()
        try:
            await scenario(classifier, telemetry)
        finally:
            await classifier.aclose()
            await registry.aclose()
        return telemetry

    return asyncio.run(run())


def test_names_and_units_follow_prometheus_conventions(colours: Repository) -> None:
    """As promtool checks: only counters end in _total; help; base units; no type in a name."""
    kinds = {}
    for family in text_string_to_metric_families(text(filled(colours))):
        if family.name.endswith("_created"):
            continue  # the library adds one to each series
        names = {sample.name for sample in family.samples}
        assert names, f"{family.name} has no series"
        assert family.documentation
        assert not NO_UNIT.search(family.name)
        assert not re.search(r"counter|gauge|histogram|summary|[A-Z:]", family.name)
        suffixes = {"counter": {"_total"}, "histogram": {"_bucket", "_sum", "_count"}}
        expected = {family.name + suffix for suffix in suffixes.get(family.type, {""})}
        assert names == expected
        for sample in family.samples:
            labels = set(sample.labels) - ({"le"} if family.type == "histogram" else set())
            assert all(re.fullmatch("[a-z][a-z_]*", label) and label != "le" for label in labels)
        if family.name.startswith(OWN):
            kinds[family.name] = family.type
    assert kinds == {
        "grpc_server_handled": "counter",
        "grpc_server_handling_seconds": "histogram",
        "topwork_backbone_agreement": "gauge",
        "topwork_build_info": "gauge",
        "topwork_confidence": "histogram",
        "topwork_database_up": "gauge",
        "topwork_finished_operations": "counter",
        "topwork_gate_rejections": "counter",
        "topwork_heads": "gauge",
        "topwork_images": "counter",
        "topwork_micro_batch_images": "histogram",
        "topwork_model_bytes": "gauge",
        "topwork_model_drift": "gauge",
        "topwork_model_drift_threshold": "gauge",
        "topwork_model_quota_bytes": "gauge",
        "topwork_model_stage_seconds": "counter",
        "topwork_models": "gauge",
        "topwork_oldest_operation_seconds": "gauge",
        "topwork_operation_stage_seconds": "histogram",
        "topwork_operations": "gauge",
        "topwork_predicted_images": "counter",
        "topwork_queue_images": "gauge",
        "topwork_rejected_images": "counter",
        "topwork_repository_free_bytes": "gauge",
        "topwork_repository_free_inodes": "gauge",
        "topwork_request_images": "histogram",
        "topwork_review_images": "counter",
        "topwork_stage_seconds": "histogram",
        "topwork_swaps": "counter",
        "topwork_unknown_images": "counter",
        "topwork_worker_up": "gauge",
    }


def test_telemetry_objects_share_no_metrics() -> None:
    """Each Telemetry counts for itself, so several servers can run in one process."""
    first, second = Telemetry(), Telemetry()
    first.swaps.inc()
    assert value(first, "topwork_swaps_total") == 1
    assert value(second, "topwork_swaps_total") == 0


def test_gauge_is_evaluated_when_read() -> None:
    """The value of a gauge is computed at each scrape."""
    telemetry, waiting = Telemetry(), [1, 2]
    telemetry.watch("topwork_things", "Things.", lambda: len(waiting))
    waiting.append(3)
    assert value(telemetry, "topwork_things") == 3
    waiting.clear()
    assert value(telemetry, "topwork_things") == 0


def test_answered_images_are_counted_and_timed(colours: Repository) -> None:
    """A classified image counts as ok and is observed once in each stage, in seconds."""

    async def call(classifier: Classifier, _: Telemetry) -> None:
        timings = [
            (await classifier.classify("colours", [PHOTO] * count)).timings for count in (3, 2)
        ]
        spent.update(
            decode=sum(timing.decode for timing in timings),
            backbone=sum(timing.backbone for timing in timings),
            head=sum(timing.head for timing in timings),
        )

    spent: dict[str, float] = {}
    telemetry = observed(colours, call)
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "ok"}) == 5
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "error"}) is None
    assert value(telemetry, "topwork_request_images_count") == 2
    assert value(telemetry, "topwork_request_images_sum") == 5
    assert value(telemetry, "topwork_micro_batch_images_count") == 5
    assert value(telemetry, "topwork_micro_batch_images_sum") == 5
    for stage, count in zip(STAGES, (5, 5, 5, 2), strict=True):
        assert (
            value(telemetry, "topwork_stage_seconds_count", {"stage": stage, "kind": "image"})
            == count
        )
    for stage, seconds in spent.items():
        total = value(telemetry, "topwork_stage_seconds_sum", {"stage": stage, "kind": "image"})
        assert total == pytest.approx(seconds)
    assert "topwork_rejected_images_total{" not in text(telemetry)


def test_stages_are_counted_by_kind(tmp_path: Path) -> None:
    """A text has all stages; an embedding of the client takes no time in two of them."""

    async def call(classifier: Classifier, _: Telemetry) -> None:
        for sample in kinds.KINDS:
            content = sample.contents(sample.labels[0], 1, 0)[0]
            await classifier.classify(sample.model, [stored_input(content, sample.spec)])

    telemetry = observed(kinds.repository(tmp_path), call)
    for sample in kinds.KINDS:
        for stage in STAGES:
            labels = {"stage": stage, "kind": sample.name}
            assert value(telemetry, "topwork_stage_seconds_count", labels) == 1
            spent = value(telemetry, "topwork_stage_seconds_sum", labels)
            idle = sample.name == "embedding" and stage in {"decode", "backbone"}
            assert (spent == 0) is idle, labels


def test_unreadable_image_counts_as_error(colours: Repository) -> None:
    """An unreadable image is observed in queue and decode, not in backbone, and counts as error."""

    async def call(classifier: Classifier, _: Telemetry) -> None:
        await classifier.classify("colours", [PHOTO, b"no photo", PHOTO])
        await classifier.classify("colours", [b"no photo"])

    telemetry = observed(colours, call)
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "ok"}) == 2
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "error"}) == 2
    for stage, count in zip(STAGES, (4, 4, 2, 1), strict=True):
        assert (
            value(telemetry, "topwork_stage_seconds_count", {"stage": stage, "kind": "image"})
            == count
        )


def test_refused_images_are_counted_by_reason(
    colours: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are counted once, as OVERLOADED, NO_TIME or DEADLINE_PASSED.

    Those that the encoder has taken do not wait.
    """
    may_decode = threading.Event()

    def decode(*args: Any, **options: Any) -> Prepared:
        assert may_decode.wait(60), "the test forgot to let images be decoded"
        return prepare(*args, **options)

    monkeypatch.setattr(decoding, "prepare", decode)

    async def call(classifier: Classifier, telemetry: Telemetry) -> None:
        admitted = asyncio.create_task(classifier.classify("colours", [PHOTO] * 6))
        await asyncio.sleep(0)  # until the images are admitted
        with pytest.raises(Overloaded, match="limit of 16"):
            await classifier.classify("colours", [PHOTO] * 11)
        with pytest.raises(Overloaded) as caught:
            await classifier.classify("colours", [PHOTO] * 4, budget=0.01)
        assert caught.value.reason == "NO_TIME"
        with pytest.raises(DeadlinePassed):
            await classifier.classify("colours", [PHOTO] * 2, budget=0.2)
        assert value(telemetry, "topwork_queue_images") == 6 - ITEMS_PER_THREAD
        may_decode.set()
        await admitted
        assert value(telemetry, "topwork_queue_images") == 0

    try:
        telemetry = observed(colours, call)
    finally:
        may_decode.set()
    for reason, images in (("OVERLOADED", 11), ("NO_TIME", 4), ("DEADLINE_PASSED", 2)):
        assert value(telemetry, "topwork_rejected_images_total", {"reason": reason}) == images
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "ok"}) == 6
    assert value(telemetry, "topwork_request_images_count") == 4


def test_unknown_model_is_not_counted(colours: Repository) -> None:
    """A request for an unknown model adds no series with a name that the caller chose."""

    async def call(classifier: Classifier, _: Telemetry) -> None:
        with pytest.raises(NotFound):
            await classifier.classify("made-up", [PHOTO])

    telemetry = observed(colours, call)
    assert "made-up" not in text(telemetry)
    assert "topwork_rejected_images_total{" not in text(telemetry)


def test_swaps_models_and_heads(colours: Repository) -> None:
    """Each revision that begins to serve is a swap; models and heads are current counts."""

    def counts(telemetry: Telemetry) -> list[float | None]:
        names = ("topwork_swaps_total", "topwork_models", "topwork_heads")
        return [value(telemetry, name) for name in names]

    async def play() -> None:
        registry, classifier, telemetry = engine(colours)
        await classifier.start()
        assert counts(telemetry) == [0, 0, 0]
        await registry.start()
        try:
            assert counts(telemetry) == [1, 1, 1]
            await registry.refresh()
            assert counts(telemetry) == [1, 1, 1]  # nothing was new
            tiny.publish(colours, "colours", more)
            await registry.refresh()
            assert counts(telemetry) == [2, 1, 1]
            tiny.publish(colours, "others", more)
            await registry.refresh()
            assert counts(telemetry) == [3, 2, 2]
            await classifier.classify("colours", [PHOTO], revision=1)
            assert counts(telemetry) == [3, 2, 3]  # loads an old head, swaps nothing
        finally:
            await classifier.aclose()
            await registry.aclose()

    more = tiny.embed_pictures({label: pictures(label, 12) for label in ("blue", "violet")})
    asyncio.run(play())


@asynccontextmanager
async def served(
    telemetry: Telemetry, behave: Callable[[bytes], Awaitable[bytes]]
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve ``behave`` as a method of the classifier service and of the health service.

    The method has the name StreamClassify, because the interceptor does not parse its requests.
    """

    async def call(request: bytes, _: Any) -> bytes:
        return await behave(request)

    server = grpc.aio.server(interceptors=[Interceptor(telemetry, Access(None))])
    handlers: dict[str, Any] = {"StreamClassify": grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, handlers) for name in (SERVICE, HEALTH)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


def test_calls_are_counted_and_timed_by_method_and_code() -> None:
    """Calls of the classifier are counted by code and timed; health and unknown methods are not."""
    telemetry = Telemetry()

    async def behave(request: bytes) -> bytes:
        if request == b"full":
            raise Overloaded("full", retry_after=1.0)
        if request == b"odd":
            raise ZeroDivisionError
        return request

    async def play() -> None:
        async with served(telemetry, behave) as channel:
            classify: Any = channel.unary_unary(f"/{SERVICE}/StreamClassify")
            health: Any = channel.unary_unary(f"/{HEALTH}/StreamClassify")
            unknown: Any = channel.unary_unary(f"/{SERVICE}/Forget")
            assert await classify(b"good") == b"good"
            assert await health(b"good") == b"good"
            for method, request in (
                (classify, b"full"),
                (classify, b"full"),
                (classify, b"odd"),
                (unknown, b""),
            ):
                with pytest.raises(grpc.aio.AioRpcError):
                    await method(request)

    asyncio.run(play())
    for code, count in (("OK", 1), ("RESOURCE_EXHAUSTED", 2), ("INTERNAL", 1), ("CANCELLED", 0)):
        # Zeros are exported, so that the first error is an increase and not a new series.
        labels = {**CLASSIFY, "grpc_code": code}
        assert value(telemetry, "grpc_server_handled_total", labels) == count
    assert value(telemetry, "grpc_server_handling_seconds_count", CLASSIFY) == 4
    seconds = value(telemetry, "grpc_server_handling_seconds_sum", CLASSIFY)
    assert seconds is not None
    assert 0 < seconds < 60
    assert HEALTH not in text(telemetry)
    assert "Forget" not in text(telemetry)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timeout", "code"),
    [(60.0, "CANCELLED"), (0.05, "DEADLINE_EXCEEDED"), (1.0, "DEADLINE_EXCEEDED")],
)
def test_deadline_and_cancellation_have_different_codes(timeout: float, code: str) -> None:
    """A call ended by its deadline counts as DEADLINE_EXCEEDED, a cancelled one as CANCELLED.

    Both reach the server as the same message; a deadline may arrive slightly early.
    """
    telemetry = Telemetry()

    async def play() -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def behave(_: bytes) -> bytes:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:  # the call is counted in the same step of the event loop
                left.set()
            return b""

        async with served(telemetry, behave) as channel:
            classify: Any = channel.unary_unary(f"/{SERVICE}/StreamClassify")
            call = classify(b"", timeout=timeout)
            await entered.wait()
            if code == "CANCELLED":
                call.cancel()
            await asyncio.wait({asyncio.ensure_future(call.code())})
            async with asyncio.timeout(60):
                await left.wait()

    asyncio.run(play())
    for candidate in ("CANCELLED", "DEADLINE_EXCEEDED"):
        labels = {**CLASSIFY, "grpc_code": candidate}
        assert value(telemetry, "grpc_server_handled_total", labels) == (candidate == code)
