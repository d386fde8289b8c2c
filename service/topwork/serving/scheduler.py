"""Scheduler of Classify: one fair queue of images, an encoder, and the answers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageCrash, ImageError, Unavailable
from topwork.serving.caller_queue import CallerQueue, CallTicket
from topwork.serving.encoders.encoder import (
    Encoded,
    Encoder,
    Failed,
    Item,
    MicroBatch,
    Refused,
    Result,
)
from topwork.serving.fair_queue import Flow
from topwork.serving.head import LoadedHead
from topwork.serving.throughput import ThroughputEstimate

A_co = TypeVar("A_co", covariant=True)
A = TypeVar("A")


LOOP_IMAGES = 64
LOOP_BYTES = 16 * 10**6
"""Most images, and largest product of images and a head's bytes, answered in the event loop.

About a millisecond; raising it delays other calls more often.
"""


class EncodingError(Exception):
    """Error of the encoder that is not the image's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutcome:
    """Result of one image, with the seconds of its stages."""

    result: NDArray[np.float32] | ImageError
    """Embedding (D,), or the error of the image."""
    waited: float
    """Seconds in the queue, and between decoding and the backbone."""
    decoded: float
    """Seconds of decoding and preprocessing."""
    computed: float = 0.0
    """Seconds of the backbone: this image's share of its run."""
    run: MicroBatch | None = None
    """None on a CPU, where each image has its own run."""

    @property
    def images(self) -> int:
        """Number of images in the run."""
        return 1 if self.run is None else self.run.images


@dataclass(frozen=True, slots=True)
class Scores:
    """Outputs of a head for N embeddings; see LoadedHead.run."""

    probabilities: NDArray[np.float32]
    """(N, C)"""
    unknown: NDArray[np.float32] | None
    """(N,)"""
    seconds: float
    """Seconds of the head's run, shared by all answers of the group."""


@dataclass(frozen=True, slots=True)
class Content:
    """Image for an encoder; see Item."""

    data: bytes
    pixels: bool = False


class RequestBatch(Protocol[A_co]):
    """Request batch: images for one backbone and one head."""

    @property
    def images(self) -> int:
        """Number of images; at least 1."""

    @property
    def backbone(self) -> str:
        """Digest of the backbone."""

    def content(self, index: int) -> Content:
        """Return an image. Raises ImageError."""

    @property
    def head(self) -> LoadedHead:
        """Head for the embeddings."""

    def answer(self, outcomes: list[ImageOutcome], scores: Scores | None) -> A_co:
        """Return the answer.

        ``outcomes`` has one outcome per image, in order; ``scores`` has one row per embedded image,
        in the same order, and is None if no image was embedded.
        """


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
    """Scheduler of request batches: an encoder, heads and answers.

    Images of all callers wait in one queue, and go to the encoder one at a time, as soon as it can
    take one. When all images of a batch are embedded, its answer is made. Batches that are complete
    at the same time form a group, which reads a head's weights from memory once. When a batch ends
    early (cancelled, deadline exceeded, encoding error), its waiting images leave the queue at
    once. All state belongs to one event loop.
    """

    def __init__(self, encoder: Encoder, *, cores: int) -> None:
        self._encoder = encoder
        self._queue: CallerQueue[_Entry] = CallerQueue()
        self._items: dict[int, tuple[_Entry, int]] = {}
        """Batch and index of the images that the encoder has, by item."""
        self._numbers = itertools.count(1)
        self._complete: list[_Entry] = []
        self._entries: set[_Entry] = set()
        self._throughput = ThroughputEstimate(0.01 / cores)
        self._heads = ThreadPoolExecutor(1, thread_name_prefix="heads")
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
        self._heads.shutdown(wait=False, cancel_futures=True)

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
            if not self._complete:
                entry.future.get_loop().call_soon(self._answer)
            self._complete.append(entry)

    def _answer(self) -> None:
        """Make the answers of the complete batches, with one run per head."""
        complete, self._complete = self._complete, []
        groups: dict[int, list[_Entry]] = {}
        for entry in complete:
            if entry in self._entries:
                groups.setdefault(id(entry.batch.head), []).append(entry)
        for group in groups.values():
            rows = sum(entry.batch.images for entry in group)
            if rows <= LOOP_IMAGES and rows * group[0].batch.head.size <= LOOP_BYTES:
                _resolve(_answers(group))
            else:
                self._heads.submit(self._answer_in_thread, group, asyncio.get_running_loop())

    def _answer_in_thread(self, group: list[_Entry], loop: asyncio.AbstractEventLoop) -> None:
        answers = list(_answers(group))
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(_resolve, answers)

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


def _resolve(answers: Iterable[tuple[_Entry, object]]) -> None:
    for entry, answer in answers:
        if entry.future.done():  # its caller has cancelled
            continue
        if isinstance(answer, Exception):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)


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
    )


def _answers(entries: list[_Entry]) -> Iterator[tuple[_Entry, object]]:
    """Yield the answer of each batch, or its exception; all have the same head."""
    start = time.perf_counter()
    outcomes = [[outcome for outcome in entry.outcomes if outcome is not None] for entry in entries]
    rows = [
        [image.result for image in images if not isinstance(image.result, ImageError)]
        for images in outcomes
    ]
    probabilities, unknown = None, None
    try:
        if any(rows):
            head = entries[0].batch.head
            probabilities, unknown = head.run(np.stack([*chain.from_iterable(rows)]))
    except Exception as error:
        yield from ((entry, error) for entry in entries)
        return
    seconds = time.perf_counter() - start
    begin = 0
    for entry, batch_outcomes, batch_rows in zip(entries, outcomes, rows, strict=True):
        own = slice(begin, begin := begin + len(batch_rows))
        scores = None
        if probabilities is not None and batch_rows:
            batch_unknown = None if unknown is None else unknown[own]
            scores = Scores(probabilities[own], batch_unknown, seconds)
        try:
            yield entry, entry.batch.answer(batch_outcomes, scores)
        except Exception as error:
            yield entry, error
