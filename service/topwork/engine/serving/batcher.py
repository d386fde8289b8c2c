"""The queue before one backbone: gives each image to a free runner, its answer to its caller."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.image import Pixels
from topwork.errors import Unavailable

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(N, H, W, 3) uint8 -> (N, D) float32, rows in input order. Called in runners' threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """One image's embedding, and what it cost."""

    embedding: NDArray[np.float32]
    """(D,)"""
    waited: float
    """Seconds in the queue."""
    computed: float
    """Seconds of the backbone: this image's share of its micro-batch."""


@dataclass(slots=True, eq=False)
class _Entry:
    pixels: Pixels
    answer: asyncio.Future[Embedded]
    since: float


class Batcher:
    """Runs up to ``runners`` micro-batches at once, each of up to ``max_batch`` waiting images.

    All state belongs to one event loop; runners see only arrays. An entry whose caller has gone
    (cancelled, or past its deadline) is dropped before it costs compute. Its bound is the caller's:
    who submits holds a permit.
    """

    def __init__(self, embed: Embed, executor: Executor, *, runners: int, max_batch: int) -> None:
        self._embed = embed
        self._executor = executor
        self._free = runners
        self._max_batch = max_batch
        self._waiting: deque[_Entry] = deque()

    async def submit(self, pixels: Pixels) -> Embedded:
        """Return the embedding of one preprocessed image. Raises what the backbone raised."""
        answer: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(pixels, answer, time.perf_counter()))
        self._dispatch()
        return await answer

    def _dispatch(self) -> None:
        while self._free and (batch := self._next_batch()):
            self._free -= 1
            try:
                running = asyncio.get_running_loop().run_in_executor(
                    self._executor, self._run, [entry.pixels for entry in batch]
                )
            except RuntimeError:  # the executor is shut down
                self._free += 1
                _fail(batch, Unavailable("the server is stopping"))
            else:
                running.add_done_callback(partial(self._finish, batch))

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if not entry.answer.done():
                batch.append(entry)
        return batch

    def _run(self, images: list[Pixels]) -> tuple[NDArray[np.float32], float, float]:
        start = time.perf_counter()
        embeddings = self._embed(np.stack(images))
        if len(embeddings) != len(images):
            raise ValueError(f"the backbone gave {len(embeddings)} rows for {len(images)} images")
        return embeddings, start, (time.perf_counter() - start) / len(images)

    def _finish(
        self,
        batch: list[_Entry],
        done: asyncio.Future[tuple[NDArray[np.float32], float, float]],
    ) -> None:
        self._free += 1
        if done.cancelled():  # by the executor's shutdown, before it ran
            _fail(batch, Unavailable("the server is stopping"))
        elif (error := done.exception()) is not None:
            _fail(batch, error)
        else:
            embeddings, start, computed = done.result()
            for row, entry in enumerate(batch):
                if not entry.answer.done():
                    waited = start - entry.since
                    answer = Embedded(embedding=embeddings[row], waited=waited, computed=computed)
                    entry.answer.set_result(answer)
        self._dispatch()


def _fail(batch: list[_Entry], error: BaseException) -> None:
    for entry in batch:
        if not entry.answer.done():
            entry.answer.set_exception(error)
