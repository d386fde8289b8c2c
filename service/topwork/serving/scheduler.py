"""The threads that do the work of Classify: one a core, all from one fair queue."""

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

HELD = 4
"""An answer waits for its group while one more image ends for this many requests that wait."""

NICE = 2
"""By how much the threads give way to the event loop."""

LARGEST_GROUP = 8
"""Images, since no answer shall wait long."""

JOIN_SECONDS = 5.0
"""Raising it lets close() wait longer for the threads, each of which ends the image it is at."""


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """What became of one image, and seconds of its stages."""

    result: Embedded | ImageError
    waited: float
    """In the queue, and between decoding and the backbone."""
    decoded: float
    """Decoding and preprocessing."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a head says of N embeddings, as Head.run returns it."""

    probabilities: NDArray[np.float32]
    """(N, C)"""
    unknown: NDArray[np.float32] | None
    """(N,)"""
    seconds: float
    """That the head took, for all answers of its group."""


class RequestBatch(Protocol[A_co]):
    """A request batch. Its methods are called in the scheduler's threads."""

    @property
    def images(self) -> int:
        """How many it has; at least 1."""

    @property
    def backbone(self) -> Backbone:
        """What embeds them."""

    def decode(self, index: int) -> Pixels:
        """Return the pixels of an image. Raises ImageError."""

    @property
    def head(self) -> LoadedHead:
        """What makes scores of their embeddings."""

    def answer(self, outcomes: list[ImageOutcome], scores: Scores | None) -> A_co:
        """Return the answer.

        ``outcomes`` has one an image, in order; ``scores`` a row for each that was embedded, in the
        same order, None if none was.
        """


@dataclass(slots=True, eq=False)
class _Run:
    """A job on its way. What changes does so under the scheduler's lock."""

    job: RequestBatch[Any]
    future: asyncio.Future[Any]
    since: float
    outcomes: list[ImageOutcome | None]
    left: int
    """Images without an outcome."""
    ticket: Ticket[_Run] | None = None
    ended: bool = False
    """Its caller waits no longer."""


_End: TypeAlias = "tuple[_Run, object, Exception | None]"


class Scheduler:
    """Runs jobs: decodes and embeds their images, then makes their answers.

    Each thread takes one image at a time from the queue, whoever that belongs to, decodes it and
    has it embedded. When all images of a job are embedded, its answer is made and handed to the
    event loop, the only hand-over there is; the longer the queue, the more answers at a time, since
    a head's weights come from memory once a group and the event loop wakes once a group. What is
    left of a job that ends early (its caller has gone, its deadline is over, the backbone failed)
    leaves the queue at once. Coroutines belong to one event loop.
    """

    def __init__(self, *, cores: int) -> None:
        self._cores = cores
        self._changed = threading.Condition(threading.Lock())
        self._queue: FairQueue[_Run] = FairQueue()
        self._complete: list[_Run] = []
        self._held = 0
        """Images that ended since the first complete job did, that one included."""
        self._runs: set[_Run] = set()
        self._at_work = 0
        self._pace = ThroughputEstimate(0.01 / cores)
        self._threads: frozenset[threading.Thread] = frozenset()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._progress = 0.0

    def start(self) -> None:
        """Start the threads."""
        self._threads = frozenset(
            threading.Thread(target=self._work, name=f"classify-{number}", daemon=True)
            for number in range(self._cores)
        )
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads after the image they are at; all jobs left fail as Unavailable.

        Waits for them: one that comes back from native code when the interpreter has ended aborts
        the process.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            left = list(self._runs)
        _resolve([(run, None, Unavailable("the server is stopping")) for run in left])
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if alive := sorted(thread.name for thread in self._threads if thread.is_alive()):
            log.warning("threads still at work", threads=alive)

    def expected_seconds(self, images: int) -> float:
        """Return in how many seconds a new job of ``images`` would end, by the present pace."""
        with self._changed:
            return (self._at_work + self._queue.ahead(images) + images) * self._pace.seconds

    def waiting(self) -> int:
        """Return how many images wait."""
        return len(self._queue)

    def stalled_seconds(self) -> float:
        """Return for how long there has been work and no image has ended."""
        with self._changed:
            busy = self._at_work or len(self._queue)
            return time.perf_counter() - self._progress if busy else 0.0

    async def run(self, job: RequestBatch[A], *, deadline: float, flow: Flow) -> A:
        """Return a job's answer; ``deadline`` in seconds of the event loop's clock.

        Raises what its backbone or its ``answer`` raises, and Unavailable after close().
        """
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = self._loop.create_future()
        run = _Run(job, future, time.perf_counter(), [None] * job.images, job.images)
        with self._changed:
            if self._closed:
                raise Unavailable("the server is stopping")
            self._runs.add(run)
            if not (self._at_work or len(self._queue)):
                self._progress = run.since
            run.ticket = self._queue.push(run, job.images, deadline=deadline, flow=flow)
            self._changed.notify(job.images)
        try:
            return await future
        finally:
            with self._changed:
                self._leave(run)

    def _work(self) -> None:
        # The event loop comes first: it has little to do, and others wait for it.
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)  # the whole process may be nice already
        os.setpriority(os.PRIO_PROCESS, thread, niceness + NICE)
        while not self._closed:
            if not self._step():
                with self._changed:
                    if not (self._closed or self._complete or self._queue):
                        self._changed.wait()

    def _step(self) -> bool:
        """Answer a group of jobs, or decode and embed an image; return whether there was any."""
        with self._changed:
            group: list[_Run] = []
            image = None
            if self._held >= min(1 + self._queue.requests // HELD, LARGEST_GROUP):
                group, self._complete, self._held = self._complete, [], 0
            elif (image := self._queue.pop()) is not None:
                self._at_work += 1
                present = self._at_work + len(self._queue)
        if group:
            self._tell(_answers(group))
        elif image is not None:
            self._embed(*image, present)
        return bool(group) or image is not None

    def _embed(self, run: _Run, index: int, present: int) -> None:
        taken = time.perf_counter()
        try:
            pixels = run.job.decode(index)
        except Exception as error:
            self._deliver(run, index, taken, time.perf_counter(), error)
            return
        deliver = partial(self._deliver, run, index, taken, time.perf_counter())
        if run.ended:
            deliver(Unavailable("nobody waits"))
        else:
            run.job.backbone.embed(pixels, deliver, present=present)

    def _deliver(
        self, run: _Run, index: int, taken: float, decoded: float, result: Embedded | Exception
    ) -> None:
        with self._changed:
            self._at_work -= 1
            self._progress = time.perf_counter()
            self._pace.end(self._progress, backlog=len(self._queue) > 0)
            if self._complete:
                self._held += 1
            if run.ended:
                return
            if isinstance(result, Embedded | ImageError):
                waited = taken - run.since
                if isinstance(result, Embedded):
                    waited += result.waited
                run.outcomes[index] = ImageOutcome(result, waited, decoded - taken)
                run.left -= 1
                if not run.left:
                    self._held = self._held or 1
                    self._complete.append(run)
                    if threading.current_thread() not in self._threads:
                        self._changed.notify()  # else this thread finds it by itself
                return
            self._leave(run)
        self._tell([(run, None, result)])

    def _tell(self, ends: list[_End]) -> None:
        """Resolve futures, from any thread."""
        assert self._loop is not None, "run() comes first"
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(_resolve, ends)

    def _leave(self, run: _Run) -> None:
        run.ended = True
        self._runs.discard(run)
        if run.ticket is not None:
            self._queue.remove(run.ticket)


def _answers(runs: list[_Run]) -> list[_End]:
    """Return the answers of complete jobs: one run of each head."""
    groups: dict[int, list[_Run]] = {}
    for run in runs:
        if not run.ended:
            groups.setdefault(id(run.job.head), []).append(run)
    return [end for group in groups.values() for end in _answers_of_one_head(group)]


def _answers_of_one_head(runs: list[_Run]) -> Iterator[_End]:
    start = time.perf_counter()
    outcomes = [[one for one in run.outcomes if one is not None] for run in runs]
    rows = [
        [one.result.embedding for one in mine if isinstance(one.result, Embedded)]
        for mine in outcomes
    ]
    probabilities, unknown = None, None
    try:
        if any(rows):
            probabilities, unknown = runs[0].job.head.run(np.stack([*chain.from_iterable(rows)]))
    except Exception as error:
        yield from ((run, None, error) for run in runs)
        return
    seconds = time.perf_counter() - start
    begin = 0
    for run, mine, own_rows in zip(runs, outcomes, rows, strict=True):
        own = slice(begin, begin := begin + len(own_rows))
        scores = None
        if probabilities is not None and own_rows:
            own_unknown = None if unknown is None else unknown[own]
            scores = Scores(probabilities[own], own_unknown, seconds)
        try:
            yield run, run.job.answer(mine, scores), None
        except Exception as error:
            yield run, None, error


def _resolve(ends: list[_End]) -> None:
    for run, answer, error in ends:
        if run.future.done():  # its caller has gone
            continue
        if error is None:
            run.future.set_result(answer)
        else:
            run.future.set_exception(error)
