"""Pool of encoder processes: hands items over, and ends no item with its process."""

from __future__ import annotations

import asyncio
import hashlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from topwork.errors import ImageCrash
from topwork.serving.encoders.decoding import cancelled
from topwork.serving.encoders.encoder import Deliver, Failed, Item, Refused, Result
from topwork.serving.encoders.item_process import ItemProcess

log = structlog.get_logger(__name__)

B = TypeVar("B")
P = TypeVar("P", bound=ItemProcess[Any])

MIN_ITEMS = 2
MOST_ITEMS = 6
"""Items of a process: one in progress, the others in reserve.

Raising them leaves processes idle less often, but more items are out of their queue's order.
"""

REQUESTS_PER_ITEM = 5
"""Number of waiting requests for each item in reserve above the least."""

MOST_DEATHS = 2
"""Number of processes that an image may end before it fails."""

IMAGE_SECONDS = 10.0
"""Seconds that an image may take, some fifty times those of a large photo."""

MOST_GROWTH = 256 * 2**20
"""Raising it lets a process keep more memory after huge images before it is replaced (bytes)."""

CHECK_SECONDS = 0.25
"""Raising it looks less often for images that take too long."""


@dataclass(slots=True, eq=False)
class Pending(Generic[P, B]):
    """Item without a result."""

    item: Item
    backbone: B
    wide: bool = False
    single: bool = False
    deaths: int = 0
    cancelled: bool = False
    process: P | None = None


class ProcessPool(ABC, Generic[P, B]):
    """Part of an encoder with a process P per core that knows nothing of its backbones B.

    See Encoder. A process that ends is started again. Its items go to other processes, but an image
    that was in progress in two processes that ended is refused, as is one that takes longer than
    IMAGE_SECONDS, whose process is killed.
    """

    def __init__(self, processes: list[P]) -> None:
        self._processes = processes
        self._deliver: Deliver | None = None
        self._on_credit: Callable[[], None] | None = None
        self._pending: dict[int, Pending[P, B]] = {}
        self._waiting: deque[Pending[P, B]] = deque()
        self._most = MIN_ITEMS
        self._check: asyncio.Task[None] | None = None

    async def start(self, deliver: Deliver, on_credit: Callable[[], None]) -> None:
        """See Encoder."""
        self._deliver, self._on_credit = deliver, on_credit
        for process in self._processes:
            process.start()
        for process in self._processes:
            await process.ready.wait()
        self._check = asyncio.create_task(self._check_times(), name="encoders")

    async def aclose(self) -> None:
        """See Encoder."""
        if self._check is not None:
            self._check.cancel()
        await asyncio.gather(*(process.aclose() for process in self._processes))
        for identifier in list(self._pending):
            self._end(Failed(id=identifier, message="the server is stopping", stopping=True))

    def credits(self, requests: int) -> int:
        """See Encoder."""
        self._most = min(MIN_ITEMS + requests // REQUESTS_PER_ITEM, MOST_ITEMS)
        free = sum(process.capacity(self._most) for process in self._processes)
        return free - len(self._waiting)

    def cancel(self, identifier: int) -> None:
        """See Encoder."""
        pending = self._pending.get(identifier)
        if pending is None:
            return
        pending.cancelled = True
        if pending.process is not None:
            pending.process.cancel(identifier)
        else:
            self._waiting.remove(pending)
            self._end(cancelled(pending.item))

    def works(self) -> bool:
        """See Encoder."""
        return any(self._ready())

    @abstractmethod
    def _begin(self, process: P, pending: Pending[P, B]) -> None:
        """Hand an item over to a process."""

    def has_capacity(self) -> None:
        """See Owner."""
        self._hand_over()
        assert self._on_credit is not None, "start() comes first"
        self._on_credit()

    def delivered(self, result: Result) -> None:
        """See Owner."""
        self._hand_over()
        self._end(result)

    def died(self, items: list[Item], at_work: Item | None) -> None:
        """See Owner."""
        self._wait_again(items)
        pending = None if at_work is None else self._pending.get(at_work.id)
        if at_work is not None and pending is not None:  # else its caller has left
            pending.deaths += 1
            if pending.deaths >= MOST_DEATHS:
                self._waiting.remove(pending)
                digest = hashlib.sha256(at_work.content).hexdigest()
                log.error("image ended its encoder processes", sha256=digest, times=MOST_DEATHS)
                message = f"{MOST_DEATHS} processes ended while they encoded the image"
                self._refuse(at_work, message, ImageCrash.reason, seconds=0.0)
        self._hand_over()

    def _submit(self, pending: Pending[P, B]) -> None:
        self._pending[pending.item.id] = pending
        self._waiting.append(pending)
        self._hand_over()

    def _ready(self) -> Iterator[P]:
        return (process for process in self._processes if process.works())

    def _wait_again(self, items: list[Item]) -> None:
        """Let items of a process wait for another one, but not those whose caller has left."""
        again = [self._pending[item.id] for item in items]
        for pending in again:
            pending.process = None
        self._waiting.extendleft(pending for pending in reversed(again) if not pending.cancelled)
        for pending in again:
            if pending.cancelled:
                self._end(cancelled(pending.item))

    def _take_back(self, process: P) -> None:
        """Give the reserve of a process to others."""
        self._wait_again(process.take_back())
        self._hand_over()

    def _hand_over(self) -> None:
        """Give waiting items to processes that have capacity."""
        while self._waiting:
            pending = self._waiting[0]
            process = self._process_for(pending)
            if process is None:
                return
            self._waiting.popleft()
            pending.process = process
            self._begin(process, pending)

    def _process_for(self, pending: Pending[P, B]) -> P | None:
        first = self._processes[0]
        pending.wide = pending.wide and first.capacity(self._most) > 0 and not first.items
        if pending.wide:
            return first
        process = max(self._processes, key=lambda process: process.capacity(self._most))
        return process if process.capacity(self._most) else None

    def _refuse(self, item: Item, message: str, reason: str, *, seconds: float) -> None:
        """End an item after ``seconds`` of work."""
        started = time.perf_counter() - seconds
        self._end(
            Refused(id=item.id, message=message, reason=reason, started=started, decoded=seconds)
        )

    def _end(self, result: Result) -> None:
        del self._pending[result.id]
        assert self._deliver is not None, "start() comes first"
        self._deliver(result)

    async def _check_times(self) -> None:
        """Refuse images that take too long, and let none wait for them if a process is idle."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for process in self._processes:
                idle = any(not other.items for other in self._ready())
                if idle and len(process.items) > 1 and process.overdue(CHECK_SECONDS):
                    self._take_back(process)
                if process.overdue(IMAGE_SECONDS):
                    item = process.give_up()
                    digest = "" if item is None else hashlib.sha256(item.content).hexdigest()
                    log.error("image takes too long", sha256=digest, seconds=IMAGE_SECONDS)
                    if item is None:  # the process stood still between two images
                        continue
                    message = f"the image was not decoded and embedded within {IMAGE_SECONDS} s"
                    self._refuse(item, message, "IMAGE_TOO_SLOW", seconds=IMAGE_SECONDS)
