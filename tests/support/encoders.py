"""Encoders for tests: one of each implementation, with the results that it delivers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image

from support import tiny
from support.pictures import encode, picture
from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.backend import open_session
from topwork.serving.encoders.backbone import Backbone
from topwork.serving.encoders.cpu_backbone import open_cpu_backbone
from topwork.serving.encoders.encoder import Encoded, Encoder, Item, Result
from topwork.serving.encoders.gpu import GpuEncoder
from topwork.serving.encoders.gpu_backbone import open_gpu_backbone
from topwork.serving.encoders.process_pool import MOST_GROWTH
from topwork.serving.encoders.processes import ProcessEncoder
from topwork.serving.encoders.threads import ThreadEncoder

CORES = 2
MODEL = tiny.backbone_model()
INFO = tiny.backbone_info(MODEL)
BUSY = tiny.busy_backbone_model()
BUSY_INFO = tiny.backbone_info(BUSY)
PHOTOS = [picture("blue", number) for number in range(8)]
LARGE = [encode(Image.new("RGB", (4000, 3000), (30 * number, 9, 9))) for number in range(8)]
"""Images that take a tenth of a second to decode."""


def open_backbone(info: BackboneInfo, model: bytes) -> Backbone:
    """Return a backbone as on a GPU, but on the CPU: images in batches, others one by one."""
    session = open_session(model, output="embedding")
    if isinstance(info.preprocess, PreprocessSpec):
        return open_gpu_backbone(info, model, session, sizes=(1, 2, 4))
    return open_cpu_backbone(info, model, session, provider="cpu", cores=CORES)


def make_encoder(kind: str, *, most_growth: int = MOST_GROWTH) -> Encoder:
    """Return an encoder of a kind."""
    if kind == "threads":
        return ThreadEncoder(provider="cpu", cores=CORES, limits=DEFAULT_LIMITS)
    return make_pool(kind, most_growth=most_growth)


def make_pool(kind: str, *, most_growth: int = MOST_GROWTH) -> ProcessEncoder | GpuEncoder:
    """Return an encoder with processes."""
    if kind == "gpu":
        return GpuEncoder(
            open_backbone=open_backbone,
            cores=CORES,
            limits=DEFAULT_LIMITS,
            log_format="text",
            most_growth=most_growth,
        )
    return ProcessEncoder(
        provider="cpu",
        cores=CORES,
        limits=DEFAULT_LIMITS,
        log_format="text",
        most_growth=most_growth,
    )


class Harness:
    """Encoder with the results that it has delivered."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.results: dict[int, Result] = {}
        self._next = 0

    def deliver(self, result: Result) -> None:
        """Note a result; each item has one."""
        assert result.id not in self.results
        self.results[result.id] = result

    def submit(
        self, content: bytes, *, digest: str = INFO.digest, pixels: bool = False, present: int = 2
    ) -> int:
        """Submit an image, and return its item."""
        self._next += 1
        item = Item(id=self._next, backbone=digest, content=content, pixels=pixels)
        self.encoder.submit(item, present=present)
        return self._next

    def submit_slow(self, count: int) -> list[int]:
        """Submit images that a thread or process is long at, and return their items."""
        only_decodes = isinstance(self.encoder, GpuEncoder)
        photos, info = (LARGE, INFO) if only_decodes else (PHOTOS, BUSY_INFO)
        return [self.submit(photo, digest=info.digest) for photo in photos[:count]]

    async def result(self, item: int) -> Result:
        """Wait for an item's result."""
        await until(lambda: item in self.results)
        return self.results[item]

    async def encode(self, content: bytes, **options: Any) -> Result:
        """Return the result of an image."""
        return await self.result(self.submit(content, **options))


async def until(condition: Callable[[], Any]) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # of another thread or process
            await asyncio.sleep(0.002)


@asynccontextmanager
async def started(encoder: Encoder) -> AsyncIterator[Harness]:
    """Yield an encoder with the tiny backbone and a slow one, and start it."""
    harness = Harness(encoder)
    await harness.encoder.start(harness.deliver, lambda: None)
    try:
        await harness.encoder.load(INFO, lambda: MODEL)
        await harness.encoder.load(BUSY_INFO, lambda: BUSY)
        yield harness
    finally:
        await harness.encoder.aclose()


def embedding(result: Result) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return an item's embedding."""
    assert isinstance(result, Encoded), result
    return np.frombuffer(result.embedding, dtype=np.float32)


def expected(content: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the embedding that ONNX Runtime gives."""
    pixels = preprocess(content, INFO.image_spec)
    rows = open_session(MODEL, output="embedding").run(pixels[None])
    return np.asarray(rows[0])


def pids(encoder: ProcessEncoder | GpuEncoder) -> list[int]:
    """Return the process ids of the processes that work."""
    return [process.pid for process in encoder._processes if process.works()]
