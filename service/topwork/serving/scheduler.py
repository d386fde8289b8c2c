"""Scheduler of Classify: one fair queue of images, and an encoder."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from topwork.errors import ImageCrash, ImageError, Unavailable
from topwork.serving.answers import Answers, CompleteBatch
from topwork.serving.caller_queue import CallerQueue, CallTicket
from topwork.serving.encoders.encoder import Encoded, Encoder, Failed, Item, Refused, Result
from topwork.serving.fair_queue import Flow
from topwork.serving.request_batch import Content, ImageOutcome, RequestBatch
from topwork.serving.throughput import ThroughputEstimate

A = TypeVar("A")


class EncodingError(Exception):
    """Error of the encoder that is not the image's fault."""


@dataclass(slots=True, eq=False)
class _Entry:
    """Request batch in the scheduler."""

    batch: RequestBatch[Any]
    future: asyncio.Future[Any]
    since: float
    outcomes: list[ImageOutcome | None]
    left: int
    """Number of images without an outcome."""
    ticket: CallTicket[_Entry] | None = None
    items: set[int] = field(default_factory=set)
    """Items that the encoder has."""


class Scheduler:
    """Scheduler of request batches.

    Images of all callers wait in one queue, and go to the encoder one at a time, as soon as it can
    take one. When all images of a batch are embedded, its answer is made; see Answers. When a batch
    ends early (cancelled, deadline exceeded, encoding error), its waiting images leave the queue at
    once. All state belongs to one event loop.
    """

    def __init__(self, encoder: Encoder, *, cores: int) -> None:
        self._encoder = encoder
        self._queue: CallerQueue[_Entry] = CallerQueue()
        self._items: dict[int, tuple[_Entry, int]] = {}
        """Batch and index of the images that the encoder has, by item."""
        self._numbers = itertools.count(1)
        self._entries: set[_Entry] = set()
        self._throughput = ThroughputEstimate(0.01 / cores)
        self._answers = Answers()
        self._closed = False
        self._progress = 0.0

    async def start(self) -> None:
        """Start the encoder."""
        await self._encoder.start(self._deliver, self._hand_over)

    async def aclose(self) -> None:
        """Stop the encoder; unfinished batches fail as Unavailable."""
        self._closed = True
        for entry in list(self._entries):
            self._fail(entry, _stopping())
        await self._encoder.aclose()
        self._answers.close()

    def expected_seconds(self, images: int, caller: str) -> float:
        """Return the estimated seconds until a new batch of ``images`` would end."""
        ahead = len(self._items) + self._queue.ahead(images, caller)
        return (ahead + images) * self._throughput.seconds

    def waiting(self) -> int:
        """Return the number of waiting images."""
        return len(self._queue)

    def works(self) -> bool:
        """Return True if images are encoded now."""
        return self._encoder.works()

    def stalled_seconds(self) -> float:
        """Return the seconds since the last image finished while there was work."""
        busy = self._items or len(self._queue)
        return time.perf_counter() - self._progress if busy else 0.0

    async def run(
        self, batch: RequestBatch[A], *, deadline: float, flow: Flow, caller: str = ""
    ) -> A:
        """Return the answer of a batch; ``deadline`` in seconds of the event loop's clock.

        Callers take turns; within the turns of a ``caller``, its calls (see Flow) take turns.
        Raises EncodingError, the errors of the batch's ``answer``, and Unavailable after aclose().
        """
        if self._closed:
            raise _stopping()
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        entry = _Entry(batch, future, time.perf_counter(), [None] * batch.images, batch.images)
        if not (self._items or len(self._queue)):
            self._progress = entry.since
        self._entries.add(entry)
        entry.ticket = self._queue.push(
            entry, batch.images, deadline=deadline, flow=flow, caller=caller
        )
        try:
            self._hand_over()
            return await future
        finally:
            self._leave(entry)

    def _hand_over(self) -> None:
        """Give waiting images to the encoder, while it can take them."""
        while len(self._queue) and self._encoder.credits(self._queue.requests) > 0:
            image = self._queue.pop()
            assert image is not None, "images wait"
            entry, index = image
            try:
                content = entry.batch.content(index)
            except ImageError as error:
                waited = time.perf_counter() - entry.since
                self._end(entry, index, ImageOutcome(result=error, waited=waited, decoded=0.0))
                continue
            if not isinstance(content, Content):
                waited = time.perf_counter() - entry.since
                self._end(entry, index, ImageOutcome(result=content, waited=waited, decoded=0.0))
                continue
            number = next(self._numbers)
            self._items[number] = image
            entry.items.add(number)
            item = Item(
                id=number,
                backbone=entry.batch.backbone,
                content=content.data,
                pixels=content.pixels,
            )
            self._encoder.submit(item, present=len(self._items) + len(self._queue))

    def _deliver(self, result: Result) -> None:
        entry, index = self._items.pop(result.id)
        entry.items.discard(result.id)
        self._progress = time.perf_counter()
        self._throughput.end(self._progress, backlog=len(self._queue) > 0)
        if entry in self._entries:
            if isinstance(result, Failed):
                stopping = result.stopping
                self._fail(entry, _stopping() if stopping else EncodingError(result.message))
            else:
                self._end(entry, index, _outcome(result, index, entry.since))
        self._hand_over()

    def _end(self, entry: _Entry, index: int, outcome: ImageOutcome) -> None:
        """Take the outcome of an image."""
        entry.outcomes[index] = outcome
        entry.left -= 1
        if not entry.left:
            outcomes = [outcome for outcome in entry.outcomes if outcome is not None]
            self._answers.add(CompleteBatch(entry.batch, entry.future, outcomes))

    def _fail(self, entry: _Entry, error: Exception) -> None:
        if not entry.future.done():
            entry.future.set_exception(error)
        self._leave(entry)

    def _leave(self, entry: _Entry) -> None:
        """Remove a batch from the queue and, as far as possible, from the encoder."""
        if entry in self._entries:
            self._entries.remove(entry)
            assert entry.ticket is not None, "run() has queued it"
            self._queue.remove(entry.ticket)
            for item in list(entry.items):
                self._encoder.cancel(item)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping")


def _outcome(result: Encoded | Refused, index: int, since: float) -> ImageOutcome:
    waited = result.started - since
    if isinstance(result, Refused):
        kind = ImageCrash if result.reason == ImageCrash.reason else ImageError
        error = kind(result.message, field=f"images[{index}]", reason=result.reason)
        return ImageOutcome(result=error, waited=waited, decoded=result.decoded)
    return ImageOutcome(
        result=np.frombuffer(result.embedding, dtype=np.float32),
        waited=waited + result.waited,
        decoded=result.decoded,
        computed=result.computed,
        run=result.run,
        region=result.region,
    )
