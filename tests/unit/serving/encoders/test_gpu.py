"""Encoder for a GPU: decoded items wait in slots, and cancelled ones are dropped there."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from structlog.testing import capture_logs
from support.encoders import CORES, INFO, MODEL, PHOTOS, Harness, embedding, pids, until

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import Pixels
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.providers import Provider
from topwork.serving.encoders import choice, gpu
from topwork.serving.encoders.backbone import DeliverEmbedded, Embedded
from topwork.serving.encoders.encoder import Check, Encoded, Encoder, Failed
from topwork.serving.encoders.gpu import GpuEncoder
from topwork.serving.encoders.process_pool import MOST_ITEMS
from topwork.serving.encoders.processes import ProcessEncoder
from topwork.serving.encoders.slots import SLOTS
from topwork.serving.encoders.threads import ThreadEncoder


class FullBackbone:
    """Backbone whose micro-batches are full until ``gate`` is open."""

    seconds = math.inf, math.inf
    check = Check(agreement=None, provider="fake")

    def __init__(self, info: BackboneInfo, model: bytes) -> None:
        self.info, self.model = info, model
        self.gate = threading.Event()
        self.entered = 0

    def embed(self, pixels: Pixels, deliver: DeliverEmbedded, *, wide: bool) -> None:
        """Wait for the gate; deliver the mean of the pixels."""
        assert wide
        self.entered += 1
        self.gate.wait()
        mean = pixels.mean(dtype=np.float32, keepdims=True).ravel()
        deliver(Embedded(embedding=mean, waited=0.0, computed=0.0))

    def close(self) -> None:
        """Open the gate, as a batcher does."""
        self.gate.set()


@asynccontextmanager
async def full(
    on_credit: Callable[[], None] = lambda: None,
) -> AsyncIterator[tuple[Harness, FullBackbone]]:
    """Yield an encoder with a backbone that takes no image yet."""
    opened: list[FullBackbone] = []

    def open_backbone(info: BackboneInfo, model: bytes) -> FullBackbone:
        opened.append(FullBackbone(info, model))
        return opened[0]

    encoder = GpuEncoder(
        open_backbone=open_backbone, cores=CORES, limits=DEFAULT_LIMITS, log_format="text"
    )
    harness = Harness(encoder)
    await encoder.start(harness.deliver, on_credit)
    try:
        await encoder.load(INFO, lambda: MODEL)
        yield harness, opened[0]
    finally:
        await encoder.aclose()


def encoder_of(harness: Harness) -> GpuEncoder:
    """Return the encoder itself."""
    assert isinstance(harness.encoder, GpuEncoder)
    return harness.encoder


def is_decoded(harness: Harness) -> bool:
    """Return True if no process has an item."""
    return not any(process.items for process in encoder_of(harness)._processes)


def test_cancelled_item_is_dropped_before_its_micro_batch() -> None:
    """A decoded item that is cancelled while the micro-batches are full is not embedded."""

    async def scenario() -> None:
        async with full() as (harness, backbone):
            items = [harness.submit(photo) for photo in PHOTOS[:3]]
            await until(lambda: is_decoded(harness))
            await until(lambda: backbone.entered)
            dropped = items.pop()
            harness.encoder.cancel(dropped)
            backbone.gate.set()
            for item in items:
                assert isinstance(await harness.result(item), Encoded)
            result = await harness.result(dropped)
            assert isinstance(result, Failed)
            assert result.stopping
            assert backbone.entered == len(items)

    asyncio.run(scenario())


def test_credits_end_with_the_slots_and_come_back() -> None:
    """While the micro-batches are full every slot holds one item; then on_credit is called."""
    told = asyncio.Event()

    async def scenario() -> None:
        async with full(told.set) as (harness, backbone):
            items: list[int] = []
            while len(items) < CORES * SLOTS:
                await until(lambda: harness.encoder.credits(100) > 0)
                items.append(harness.submit(PHOTOS[0]))
            await until(lambda: is_decoded(harness))
            assert harness.encoder.credits(100) == 0
            told.clear()
            backbone.gate.set()
            await told.wait()
            for item in items:
                assert isinstance(await harness.result(item), Encoded)
            assert harness.encoder.credits(100) == CORES * MOST_ITEMS

    asyncio.run(scenario())


def test_decoded_items_survive_their_process() -> None:
    """Pixels of a process that has ended are embedded nevertheless, each in its item's result."""
    dark, light = (bytes([value]) * 16 * 16 * 3 for value in (10, 200))

    async def scenario() -> None:
        async with full() as (harness, backbone):
            items = [harness.submit(pixels, pixels=True) for pixels in (dark, light)]
            await until(lambda: is_decoded(harness))
            before = pids(encoder_of(harness))
            for process in encoder_of(harness)._processes:
                process.kill()
            await until(lambda: len(set(pids(encoder_of(harness))) - set(before)) == CORES)
            later = harness.submit(light, pixels=True)
            backbone.gate.set()
            results = [await harness.result(item) for item in (*items, later)]
            assert [embedding(result).tolist() for result in results] == [[10.0], [200.0], [200.0]]

    with capture_logs():
        asyncio.run(scenario())


def test_aclose_reports_a_feeder_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """aclose() does not wait forever for a GPU that hangs."""
    hangs = threading.Event()

    async def scenario() -> None:
        async with full() as (harness, backbone):
            monkeypatch.setattr(backbone, "close", lambda: None)
            monkeypatch.setattr(backbone, "gate", hangs)
            harness.submit(PHOTOS[0])
            await until(lambda: backbone.entered)

    monkeypatch.setattr(gpu, "JOIN_SECONDS", 0.05)
    with capture_logs() as lines:
        asyncio.run(scenario())
    assert [line.get("threads") for line in lines] == [["feeder"]]
    hangs.set()


@pytest.mark.parametrize(
    ("provider", "cores", "may", "has", "expected"),
    [
        ("cpu", 2, False, True, ProcessEncoder),
        ("cpu", 1, False, True, ThreadEncoder),
        ("auto", 2, True, True, GpuEncoder),
        ("auto", 2, True, False, ProcessEncoder),
        ("cuda", 2, True, False, GpuEncoder),  # whose loads fail
        ("cuda", 1, True, True, ThreadEncoder),
    ],
)
def test_choice_of_the_encoder(
    monkeypatch: pytest.MonkeyPatch,
    provider: Provider,
    cores: int,
    may: bool,
    has: bool,
    expected: type[Encoder],
) -> None:
    """Processes encode on several cores, and only decode beside a GPU."""
    monkeypatch.setattr(choice, "check_provider", lambda _: None)
    monkeypatch.setattr(choice, "may_use_gpu", lambda _: may)
    monkeypatch.setattr(choice, "has_gpu", lambda: has)
    chosen = choice.make_encoder(
        provider=provider, cores=cores, limits=DEFAULT_LIMITS, log_format="text"
    )
    assert type(chosen) is expected
