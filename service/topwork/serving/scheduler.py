"""Scheduler of Classify: a thread per core takes images from one fair queue."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from topwork.errors import ImageError, Unavailable
from topwork.inputs.image import Pixels
from topwork.serving.encoders.backbone import Backbone, Embedded
from topwork.serving.fair_queue import FairQueue, Flow, Ticket
from topwork.serving.head import LoadedHead
from topwork.serving.throughput import ThroughputEstimate

log = structlog.get_logger(__name__)

A_co = TypeVar("A_co", covariant=True)
A = TypeVar("A")

REQUESTS_PER_IMAGE = 4
"""Waiting requests per image that a complete answer waits for; raising it makes groups smaller."""

NICE = 2
"""Niceness of the threads; raising it gives the event loop a higher priority."""

LARGEST_GROUP = 8
"""Largest number of images that a complete answer waits for; raising it adds latency."""

JOIN_SECONDS = 5.0
"""Raising it lets close() wait longer for the threads, each of which finishes its image."""


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """Result of one image, with the seconds of its stages."""

    result: Embedded | ImageError
    waited: float
    """Seconds in the queue, and between decoding and the backbone."""
    decoded: float
    """Seconds of decoding and preprocessing."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Outputs of a head for N embeddings; see LoadedHead.run."""

    probabilities: NDArray[np.float32]
    """(N, C)"""
    unknown: NDArray[np.float32] | None
    """(N,)"""
    seconds: float
    """Seconds of the head's run, shared by all answers of the group."""


class RequestBatch(Protocol[A_co]):
    """Request batch. Its methods are called in the scheduler's threads."""

    @property
    def images(self) -> int:
        """Number of images; at least 1."""

    @property
    def backbone(self) -> Backbone:
        """Encoder of the images."""

    def decode(self, index: int) -> Pixels:
        """Return the pixels of an image. Raises ImageError."""

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
    """Request batch in the scheduler, whose lock guards all changes."""

    batch: RequestBatch[Any]
    future: asyncio.Future[Any]
    since: float
    outcomes: list[ImageOutcome | None]
    left: int
    """Number of images without an outcome."""
    ticket: Ticket[_Entry] | None = None
    ended: bool = False
    """True if its caller no longer waits."""


_End: TypeAlias = "tuple[_Entry, object, Exception | None]"


class Scheduler:
    """Scheduler of request batches: decoding, embedding, heads and answers.

    Each thread takes one image at a time from the queue, of any caller, decodes it and passes it to
    the backbone. When all images of a batch are embedded, its answer is made and posted to the
    event loop. The longer the queue, the more answers form a group: a group reads a head's weights
    from memory once and wakes the event loop once. When a batch ends early (cancelled, deadline
    exceeded, backbone error), its waiting images leave the queue at once. Coroutines belong to one
    event loop.
    """

    def __init__(self, *, cores: int) -> None:
        self._cores = cores
        self._changed = threading.Condition(threading.Lock())
        self._queue: FairQueue[_Entry] = FairQueue()
        self._complete: list[_Entry] = []
        self._images_waited = 0
        """Images that ended since the first of ``_complete`` did, including its own; 0 if empty."""
        self._entries: set[_Entry] = set()
        self._in_progress = 0
        self._throughput = ThroughputEstimate(0.01 / cores)
        self._threads: frozenset[threading.Thread] = frozenset()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._progress = 0.0

    def start(self) -> None:
        """Start the threads."""
        self._threads = frozenset(
            threading.Thread(target=self._run_forever, name=f"classify-{number}", daemon=True)
            for number in range(self._cores)
        )
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Join the threads after their current images; unfinished batches fail as Unavailable.

        Joins because a thread that returns from native code after the interpreter's end aborts the
        process.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            left = list(self._entries)
        _resolve([(entry, None, Unavailable("the server is stopping")) for entry in left])
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if alive := sorted(thread.name for thread in self._threads if thread.is_alive()):
            log.warning("threads still at work", threads=alive)

    def expected_seconds(self, images: int) -> float:
        """Return the estimated seconds until a new batch of ``images`` would end."""
        with self._changed:
            ahead = self._in_progress + self._queue.ahead(images)
            return (ahead + images) * self._throughput.seconds

    def waiting(self) -> int:
        """Return the number of waiting images."""
        return len(self._queue)

    def stalled_seconds(self) -> float:
        """Return the seconds since the last image finished while there was work."""
        with self._changed:
            busy = self._in_progress or len(self._queue)
            return time.perf_counter() - self._progress if busy else 0.0

    async def run(self, batch: RequestBatch[A], *, deadline: float, flow: Flow) -> A:
        """Return the answer of a batch; ``deadline`` in seconds of the event loop's clock.

        Raises the errors of its backbone and its ``answer``, and Unavailable after close().
        """
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = self._loop.create_future()
        entry = _Entry(batch, future, time.perf_counter(), [None] * batch.images, batch.images)
        with self._changed:
            if self._closed:
                raise Unavailable("the server is stopping")
            self._entries.add(entry)
            if not (self._in_progress or len(self._queue)):
                self._progress = entry.since
            entry.ticket = self._queue.push(entry, batch.images, deadline=deadline, flow=flow)
            self._changed.notify(batch.images)
        try:
            return await future
        finally:
            with self._changed:
                self._leave(entry)

    def _run_forever(self) -> None:
        # The event loop has priority: it has little work, and all requests depend on it.
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)  # the process may have a niceness
        os.setpriority(os.PRIO_PROCESS, thread, niceness + NICE)
        while not self._closed:
            if not self._step():
                with self._changed:
                    if not (self._closed or self._complete or self._queue):
                        self._changed.wait()

    def _step(self) -> bool:
        """Answer a group of batches, or decode and embed an image; return False if idle."""
        with self._changed:
            group: list[_Entry] = []
            image = None
            wait = min(1 + self._queue.requests // REQUESTS_PER_IMAGE, LARGEST_GROUP)
            if self._images_waited >= wait:
                group, self._complete, self._images_waited = self._complete, [], 0
            elif (image := self._queue.pop()) is not None:
                self._in_progress += 1
                present = self._in_progress + len(self._queue)
        if group:
            self._post(_answer_all(group))
        elif image is not None:
            self._embed(*image, present)
        return bool(group) or image is not None

    def _embed(self, entry: _Entry, index: int, present: int) -> None:
        taken = time.perf_counter()
        try:
            pixels = entry.batch.decode(index)
        except Exception as error:
            self._deliver(entry, index, taken, time.perf_counter(), error)
            return
        deliver = partial(self._deliver, entry, index, taken, time.perf_counter())
        if entry.ended:
            deliver(Unavailable("the caller has cancelled"))
        else:
            entry.batch.backbone.embed(pixels, deliver, present=present)

    def _deliver(
        self, entry: _Entry, index: int, taken: float, decoded: float, result: Embedded | Exception
    ) -> None:
        with self._changed:
            self._in_progress -= 1
            self._progress = time.perf_counter()
            self._throughput.end(self._progress, backlog=len(self._queue) > 0)
            if self._complete:
                self._images_waited += 1
            if entry.ended:
                return
            if isinstance(result, Embedded | ImageError):
                waited = taken - entry.since
                if isinstance(result, Embedded):
                    waited += result.waited
                entry.outcomes[index] = ImageOutcome(result, waited, decoded - taken)
                entry.left -= 1
                if not entry.left:
                    self._images_waited = self._images_waited or 1
                    self._complete.append(entry)
                    if threading.current_thread() not in self._threads:
                        self._changed.notify()  # a thread of the scheduler checks by itself
                return
            self._leave(entry)
        self._post([(entry, None, result)])

    def _post(self, ends: list[_End]) -> None:
        """Resolve futures, from any thread."""
        assert self._loop is not None, "run() comes first"
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(_resolve, ends)

    def _leave(self, entry: _Entry) -> None:
        entry.ended = True
        self._entries.discard(entry)
        if entry.ticket is not None:
            self._queue.remove(entry.ticket)


def _answer_all(entries: list[_Entry]) -> list[_End]:
    """Return the answers of complete batches, with one run per head."""
    groups: dict[int, list[_Entry]] = {}
    for entry in entries:
        if not entry.ended:
            groups.setdefault(id(entry.batch.head), []).append(entry)
    return [end for group in groups.values() for end in _answer_group(group)]


def _answer_group(entries: list[_Entry]) -> Iterator[_End]:
    start = time.perf_counter()
    outcomes = [[outcome for outcome in entry.outcomes if outcome is not None] for entry in entries]
    rows = [
        [image.result.embedding for image in images if isinstance(image.result, Embedded)]
        for images in outcomes
    ]
    probabilities, unknown = None, None
    try:
        if any(rows):
            head = entries[0].batch.head
            probabilities, unknown = head.run(np.stack([*chain.from_iterable(rows)]))
    except Exception as error:
        yield from ((entry, None, error) for entry in entries)
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
            yield entry, entry.batch.answer(batch_outcomes, scores), None
        except Exception as error:
            yield entry, None, error


def _resolve(ends: list[_End]) -> None:
    for entry, answer, error in ends:
        if entry.future.done():  # its caller has cancelled
            continue
        if error is None:
            entry.future.set_result(answer)
        else:
            entry.future.set_exception(error)
