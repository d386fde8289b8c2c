"""What is counted and timed, under which names, and when."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support import tiny
from support.pictures import picture, pictures

from topwork.access.access_file import Access
from topwork.bundle.store import Repository
from topwork.errors import DeadlinePassed, NotFound, Overloaded
from topwork.limits import DEFAULT_LIMITS
from topwork.rpc.interceptor import Interceptor
from topwork.serving.classifier import Classifier
from topwork.serving.registry import Registry
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
    """Return what a scrape says."""
    return generate_latest(telemetry._registry).decode()


def value(telemetry: Telemetry, name: str, labels: dict[str, str] | None = None) -> float | None:
    """Return the value of a series, None if it is not there."""
    return telemetry._registry.get_sample_value(name, labels or {})


def desk(repository: Repository) -> tuple[Registry, Classifier, Telemetry]:
    """Return a classifier for 16 images; it has one core, and does nothing until it is started."""
    telemetry = Telemetry()
    registry = Registry(repository, provider="cpu", cores=1, telemetry=telemetry)
    classifier = Classifier(
        registry, limits=DEFAULT_LIMITS, cores=1, queue_limit=16, telemetry=telemetry
    )
    return registry, classifier, telemetry


def watched(
    repository: Repository,
    scenario: Callable[[Classifier, Telemetry], Awaitable[None]],
    *,
    start: bool = True,
) -> Telemetry:
    """Return what was counted while ``scenario`` asked a classifier."""

    async def play() -> Telemetry:
        registry, classifier, telemetry = desk(repository)
        await registry.start()
        if start:
            classifier.start()
        try:
            await scenario(classifier, telemetry)
        finally:
            classifier.close()
            await registry.aclose()
        return telemetry

    return asyncio.run(play())


def test_names_and_units_are_as_prometheus_wants_them(colours: Repository) -> None:
    """As promtool checks: counters end in _total, nothing else does; help; base units; no type."""
    _, _, telemetry = desk(colours)
    telemetry.calls.labels("service", "Method", "OK").inc()
    telemetry.call_seconds.labels("service", "Method").observe(1)
    telemetry.images.labels("colours", "ok").inc()
    telemetry.rejected.labels("OVERLOADED").inc()
    kinds = {}
    for family in text_string_to_metric_families(text(telemetry)):
        if family.name.endswith("_created"):
            continue  # said of each series by the library itself
        names = {sample.name for sample in family.samples}
        assert names, f"{family.name} has no series"
        assert family.documentation
        assert not NO_UNIT.search(family.name)
        assert not re.search(r"counter|gauge|histogram|summary|[A-Z:]", family.name)
        suffixes = {"counter": {"_total"}, "histogram": {"_bucket", "_sum", "_count"}}
        wanted = {family.name + suffix for suffix in suffixes.get(family.type, {""})}
        assert names == wanted
        for sample in family.samples:
            labels = set(sample.labels) - ({"le"} if family.type == "histogram" else set())
            assert all(re.fullmatch("[a-z][a-z_]*", label) and label != "le" for label in labels)
        if family.name.startswith(OWN):
            kinds[family.name] = family.type
    assert kinds == {
        "grpc_server_handled": "counter",
        "grpc_server_handling_seconds": "histogram",
        "topwork_heads": "gauge",
        "topwork_images": "counter",
        "topwork_micro_batch_images": "histogram",
        "topwork_models": "gauge",
        "topwork_queue_images": "gauge",
        "topwork_rejected_images": "counter",
        "topwork_request_images": "histogram",
        "topwork_stage_seconds": "histogram",
        "topwork_swaps": "counter",
    }


def test_processes_do_not_share_what_they_count() -> None:
    """What one Telemetry counts is not in another: several servers fit in one process."""
    first, second = Telemetry(), Telemetry()
    first.swaps.inc()
    assert value(first, "topwork_swaps_total") == 1
    assert value(second, "topwork_swaps_total") == 0


def test_a_gauge_is_asked_when_it_is_read() -> None:
    """A watched value is that of the moment in which it is read."""
    telemetry, waiting = Telemetry(), [1, 2]
    telemetry.watch("topwork_things", "Things.", lambda: len(waiting))
    waiting.append(3)
    assert value(telemetry, "topwork_things") == 3
    waiting.clear()
    assert value(telemetry, "topwork_things") == 0


def test_answered_images_are_counted_and_timed(colours: Repository) -> None:
    """Each good image is one ok, and one observation of each of its stages; seconds, not more."""

    async def ask(classifier: Classifier, _: Telemetry) -> None:
        timings = [
            (await classifier.classify("colours", [PHOTO] * count)).timings for count in (3, 2)
        ]
        spent.update(
            decode=sum(one.decode for one in timings),
            backbone=sum(one.backbone for one in timings),
            head=sum(one.head for one in timings),
        )

    spent: dict[str, float] = {}
    telemetry = watched(colours, ask)
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "ok"}) == 5
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "error"}) is None
    assert value(telemetry, "topwork_request_images_count") == 2
    assert value(telemetry, "topwork_request_images_sum") == 5
    assert value(telemetry, "topwork_micro_batch_images_count") == 5
    assert value(telemetry, "topwork_micro_batch_images_sum") == 5
    for stage, count in zip(STAGES, (5, 5, 5, 2), strict=True):
        assert value(telemetry, "topwork_stage_seconds_count", {"stage": stage}) == count
    for stage, seconds in spent.items():
        total = value(telemetry, "topwork_stage_seconds_sum", {"stage": stage})
        assert total == pytest.approx(seconds)
    assert "topwork_rejected_images_total{" not in text(telemetry)


def test_a_bad_image_is_counted_as_an_error(colours: Repository) -> None:
    """A bad image was queued and decoded, but is no ok and never came to the backbone."""

    async def ask(classifier: Classifier, _: Telemetry) -> None:
        await classifier.classify("colours", [PHOTO, b"no photo", PHOTO])
        await classifier.classify("colours", [b"no photo"])

    telemetry = watched(colours, ask)
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "ok"}) == 2
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "error"}) == 2
    for stage, count in zip(STAGES, (4, 4, 2, 1), strict=True):
        assert value(telemetry, "topwork_stage_seconds_count", {"stage": stage}) == count


def test_refused_images_are_counted_by_reason(colours: Repository) -> None:
    """No room, no time, a deadline that passed: each image once, under its own reason."""

    async def ask(classifier: Classifier, telemetry: Telemetry) -> None:
        waits = asyncio.create_task(classifier.classify("colours", [PHOTO] * 6))
        await asyncio.sleep(0)  # it is let in, and from then on inside
        with pytest.raises(Overloaded, match="limit of 16"):
            await classifier.classify("colours", [PHOTO] * 11)
        with pytest.raises(Overloaded) as caught:
            await classifier.classify("colours", [PHOTO] * 4, budget=0.01)
        assert caught.value.reason == "NO_TIME"
        with pytest.raises(DeadlinePassed):
            await classifier.classify("colours", [PHOTO] * 2, budget=0.2)
        assert value(telemetry, "topwork_queue_images") == 6
        classifier.start()
        await waits
        assert value(telemetry, "topwork_queue_images") == 0

    telemetry = watched(colours, ask, start=False)
    for reason, images in (("OVERLOADED", 11), ("NO_TIME", 4), ("DEADLINE_PASSED", 2)):
        assert value(telemetry, "topwork_rejected_images_total", {"reason": reason}) == images
    assert value(telemetry, "topwork_images_total", {**MODEL, "result": "ok"}) == 6
    assert value(telemetry, "topwork_request_images_count") == 4


def test_what_is_not_found_is_neither_answered_nor_refused(colours: Repository) -> None:
    """A request for an unknown model adds no series that its caller named."""

    async def ask(classifier: Classifier, _: Telemetry) -> None:
        with pytest.raises(NotFound):
            await classifier.classify("made-up", [PHOTO])

    telemetry = watched(colours, ask)
    assert "made-up" not in text(telemetry)
    assert "topwork_rejected_images_total{" not in text(telemetry)


def test_swaps_models_and_heads(colours: Repository) -> None:
    """Each revision that begins to serve is a swap; models and heads are those of the moment."""

    def seen(telemetry: Telemetry) -> list[float | None]:
        names = ("topwork_swaps_total", "topwork_models", "topwork_heads")
        return [value(telemetry, name) for name in names]

    async def play() -> None:
        registry, classifier, telemetry = desk(colours)
        classifier.start()
        assert seen(telemetry) == [0, 0, 0]
        await registry.start()
        try:
            assert seen(telemetry) == [1, 1, 1]
            await registry.refresh()
            assert seen(telemetry) == [1, 1, 1]  # nothing was new
            tiny.publish(colours, "colours", more)
            await registry.refresh()
            assert seen(telemetry) == [2, 1, 1]
            tiny.publish(colours, "others", more)
            await registry.refresh()
            assert seen(telemetry) == [3, 2, 2]
            await classifier.classify("colours", [PHOTO], revision=1)
            assert seen(telemetry) == [3, 2, 3]  # an old revision's head came, none began to serve
        finally:
            classifier.close()
            await registry.aclose()

    more = tiny.embed_pictures({label: pictures(label, 12) for label in ("blue", "violet")})
    asyncio.run(play())


@asynccontextmanager
async def served(
    telemetry: Telemetry, behave: Callable[[bytes], Awaitable[bytes]]
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve one method of an own service and of health, both of which do the same.

    It is called as one whose request the interceptor does not look into.
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
    """Every call of an own method is counted under its code and timed; health and unknown, not."""
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
        # Zero is said too: a first error shall be a rise from zero, not a series that appears.
        labels = {**CLASSIFY, "grpc_code": code}
        assert value(telemetry, "grpc_server_handled_total", labels) == count
    assert value(telemetry, "grpc_server_handling_seconds_count", CLASSIFY) == 4
    seconds = value(telemetry, "grpc_server_handling_seconds_sum", CLASSIFY)
    assert seconds is not None
    assert 0 < seconds < 60
    assert HEALTH not in text(telemetry)
    assert "Forget" not in text(telemetry)


@pytest.mark.parametrize(
    ("timeout", "code"),
    [(60.0, "CANCELLED"), (0.05, "DEADLINE_EXCEEDED"), (1.0, "DEADLINE_EXCEEDED")],
)
def test_a_deadline_is_no_cancellation(timeout: float, code: str) -> None:
    """A call that ends by its client's deadline is told apart from one that its client gave up.

    Both reach the server as the same message; a deadline may come a moment before its time.
    """
    telemetry = Telemetry()

    async def play() -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def behave(_: bytes) -> bytes:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:  # counted in the same step of the event loop
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
    for one in ("CANCELLED", "DEADLINE_EXCEEDED"):
        labels = {**CLASSIFY, "grpc_code": one}
        assert value(telemetry, "grpc_server_handled_total", labels) == (one == code)
