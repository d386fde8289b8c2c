"""Health of services, and its watchers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from topwork.bundle.manifest import BackboneInfo
from topwork.rpc import health as health_module
from topwork.rpc.health import Health
from topwork.serving.encoders.encoder import Check, Deliver, Encoded, Item
from topwork.serving.fair_queue import Flow
from topwork.serving.request_batch import Content
from topwork.serving.scheduler import Scheduler

PATIENCE = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class BudgetRecorder:
    """A classifier that records the budget and times out, and a context with a deadline."""

    def __init__(self, health: Health, channel: grpc.aio.Channel) -> None:
        self.health = health
        self._stub: Any = health_pb2_grpc.HealthStub(channel)

    async def check(self, service: str = "") -> int:
        """Return a service's status."""
        request = health_pb2.HealthCheckRequest(service=service)
        return int((await self._stub.Check(request, timeout=PATIENCE)).status)

    def watch(self, service: str = "") -> Any:
        """Return a call that yields a service's statuses."""
        return self._stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)

    async def until(self, status: int, service: str = "") -> None:
        """Wait until a service has a status."""
        async for response in self.watch(service):
            if response.status == status:
                return
        raise AssertionError("it did not come about")


@asynccontextmanager
async def healthy(checks: Mapping[str, Callable[[], bool]]) -> AsyncIterator[BudgetRecorder]:
    """Serve a Health of ``checks`` that looks a hundred times a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health_module, "CHECK_SECONDS", 0.01)
        health = Health(checks)
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await health.start()
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield BudgetRecorder(health, channel)
        finally:
            await health.aclose()
            await server.stop(None)


def test_first_status_comes_from_first_check() -> None:
    """As soon as a server answers, each service has the status of its own check."""

    async def scenario() -> list[int]:
        checks = {"": lambda: True, "works": lambda: True, "broken": lambda: False}
        async with healthy(checks) as asked:
            return [await asked.check(service) for service in checks]

    with capture_logs() as lines:
        assert asyncio.run(scenario()) == [SERVING, SERVING, NOT_SERVING]
    assert not lines  # nothing has changed


def test_unknown_service_is_not_found() -> None:
    """A service without a check is NOT_FOUND, not healthy."""

    async def scenario() -> grpc.StatusCode:
        async with healthy({"": lambda: True}) as asked:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked.check("topwork.v1.Other")
            return caught.value.code()

    assert asyncio.run(scenario()) is grpc.StatusCode.NOT_FOUND


def test_watcher_receives_changes_of_its_service() -> None:
    """A watcher receives the changes of its service only.

    Each change to NOT_SERVING is a warning.
    """
    works = {"one": True, "other": True}

    async def scenario() -> tuple[list[int], int]:
        checks = {name: lambda name=name: works[name] for name in works}
        async with healthy(checks) as asked:
            heard = []
            async for response in asked.watch("one"):
                heard.append(response.status)
                if len(heard) == 4:
                    break
                works["one"] = not works["one"]
            return heard, await asked.check("other")

    with capture_logs() as lines:
        heard, other = asyncio.run(scenario())
    assert heard == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    assert other == SERVING
    assert [(line["log_level"], line["service"], line["serving"]) for line in lines] == [
        ("warning", "one", False),
        ("info", "one", True),  # nothing that anybody has to look at
        ("warning", "one", False),
    ]


def test_watchers_receive_changes_after_another_left() -> None:
    """A change reaches the remaining watchers after another watcher of the same service left."""
    works = {"": True}

    async def scenario() -> list[int]:
        async with healthy({"": lambda: works[""]}) as asked:
            stays, leaves = asked.watch(), asked.watch()
            heard = [(await watch.read()).status for watch in (stays, leaves)]
            leaves.cancel()
            await wait_until_watcher_left(asked)
            works[""] = False
            heard.append((await asyncio.wait_for(stays.read(), 5)).status)
            return heard

    assert asyncio.run(scenario()) == [SERVING, SERVING, NOT_SERVING]


async def wait_until_watcher_left(asked: BudgetRecorder) -> None:
    """Return when the server has noticed the cancelled watch."""
    for _ in range(20):  # calls of one connection arrive in order; these give the loop its turns
        await asked.check()


def test_closed_health_is_not_serving() -> None:
    """After aclose all services are NOT_SERVING for good, and watchers were notified."""

    async def scenario() -> None:
        async with healthy({"": lambda: True, "service": lambda: True}) as asked:
            watched = asked.watch("service")
            assert (await watched.read()).status == SERVING
            await asked.health.aclose()
            assert (await watched.read()).status == NOT_SERVING
            for service in ("", "service"):
                assert await asked.check(service) == NOT_SERVING
            assert not [task for task in asyncio.all_tasks() if task.get_name() == "health"]

    asyncio.run(scenario())


class HangingEncoder:
    """Encoder of one image at a time, which is finished when the test decides."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self._deliver: Deliver | None = None
        self._busy = False

    async def start(self, deliver: Deliver, on_credit: Callable[[], None]) -> None:  # noqa: ARG002  # part of the protocol
        """See Encoder."""
        self._deliver = deliver

    async def aclose(self) -> None:
        """See Encoder."""

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:  # noqa: ARG002  # part of the protocol
        """See Encoder."""
        return Check(agreement=None, provider="none")

    def unload(self, digest: str) -> None:
        """See Encoder."""

    def credits(self, requests: int) -> int:  # noqa: ARG002  # part of the protocol
        """See Encoder."""
        return 0 if self._busy else 1

    def submit(self, item: Item, *, present: int) -> None:  # noqa: ARG002  # part of the protocol
        """See Encoder."""
        self._busy = True
        self.items.put_nowait(item)

    def cancel(self, identifier: int) -> None:
        """See Encoder. The image is in progress already."""

    def works(self) -> bool:
        """See Encoder."""
        return True

    def finish(self, item: Item) -> None:
        """Deliver the embedding of an image."""
        self._busy = False
        assert self._deliver is not None
        self._deliver(
            Encoded(
                id=item.id,
                embedding=np.zeros(1, dtype=np.float32).tobytes(),
                started=time.perf_counter(),
                decoded=0,
                waited=0,
                computed=0,
            )
        )


def make_request() -> Any:
    """Return a batch of one image."""
    return SimpleNamespace(
        images=1,
        backbone="",
        content=lambda _: Content(b""),
        head=SimpleNamespace(size=0, run=lambda embeddings: (embeddings, None)),
        answer=lambda *_: "answered",
    )


@pytest.mark.slow
def test_hanging_backbone_is_not_serving() -> None:
    """An idle backbone is healthy.

    One that never finishes is not, even after its callers have left. It is healthy again once it
    finishes.
    """
    limit = 0.1

    async def scenario() -> None:
        encoder = HangingEncoder()
        scheduler = Scheduler(encoder, cores=1)
        await scheduler.start()

        async def ask() -> tuple[asyncio.Task[str], Item]:
            run = scheduler.run(make_request(), deadline=0, flow=Flow())
            task = asyncio.create_task(run)
            return task, await asyncio.wait_for(encoder.items.get(), PATIENCE)

        try:
            async with healthy({"": lambda: scheduler.stalled_seconds() < limit}) as asked:
                assert scheduler.stalled_seconds() == 0
                answered, item = await ask()
                await asked.until(NOT_SERVING)
                encoder.finish(item)
                assert await answered == "answered"
                assert scheduler.stalled_seconds() == 0
                await asked.until(SERVING)
                last_end = scheduler._progress
                while time.perf_counter() - last_end < limit:
                    assert await asked.check() == SERVING  # idle for as long as a stall
                given_up, item = await ask()
                assert 0 < scheduler.stalled_seconds() < time.perf_counter() - last_end - limit
                given_up.cancel()
                await asked.until(NOT_SERVING)
                encoder.finish(item)
                await asked.until(SERVING)
        finally:
            await scheduler.aclose()

    asyncio.run(scenario())
