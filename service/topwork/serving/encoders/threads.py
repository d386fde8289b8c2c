"""Encoder with threads of this process: for one core."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

import structlog

from topwork.bundle.manifest import BackboneInfo
from topwork.limits import InputLimits
from topwork.runtime.providers import Provider
from topwork.serving.encoders.core_choice import CoreChoice
from topwork.serving.encoders.decoding import cancelled
from topwork.serving.encoders.encoder import NICE, Check, Deliver, Encoded, Failed, Item, Result
from topwork.serving.encoders.pipeline import Embeddable, Pipeline

log = structlog.get_logger(__name__)

T = TypeVar("T")

ITEMS_PER_THREAD = 2
"""Raising it leaves threads idle less often, but more items are out of their queue's order."""

JOIN_SECONDS = 5.0
"""Raising it lets aclose() wait longer for the threads, each of which finishes its image."""


class ThreadEncoder:
    """See Encoder. A crash of a decoder ends this process, and a slow image cannot be ended.

    An item takes a credit until its thread is free again: on a GPU it waits for its run without it.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        cores: int,
        limits: InputLimits,
    ) -> None:
        self._deliver: Deliver | None = None
        self._on_credit: Callable[[], None] | None = None
        self._cores = cores
        self._pipeline = Pipeline(provider=provider, limits=limits)
        self._loads: dict[str, int] = {}
        self._choices: dict[str, CoreChoice] = {}
        self._checks: dict[str, Check] = {}
        self._items: dict[int, _InProgress] = {}
        self._taken: set[int] = set()
        """Items that take a credit."""
        self._queue: SimpleQueue[_InProgress | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loading = asyncio.Lock()  # one at a time, since loading measures the speed
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, deliver: Deliver, on_credit: Callable[[], None]) -> None:
        """See Encoder."""
        self._deliver, self._on_credit = deliver, on_credit
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._run, name=f"encoder-{number}", daemon=True)
            for number in range(self._cores)
        ]
        for thread in self._threads:
            thread.start()

    async def aclose(self) -> None:
        """See Encoder. Joins the threads after their current images.

        A thread that returns from native code after the interpreter's end aborts the process.
        """
        for identifier in list(self._items):
            self._end(Failed(id=identifier, message="the server is stopping", stopping=True))
        for _ in self._threads:
            self._queue.put(None)
        await asyncio.to_thread(self._join)

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:
        """See Encoder."""
        async with self._loading:
            if info.digest not in self._loads:
                backbone = await asyncio.to_thread(
                    lambda: self._pipeline.load(info, model(), cores=self._cores)
                )
                self._choices[info.digest] = CoreChoice(info.name, *backbone.seconds)
                self._checks[info.digest] = backbone.check
            self._loads[info.digest] = self._loads.get(info.digest, 0) + 1
            return self._checks[info.digest]

    def unload(self, digest: str) -> None:
        """See Encoder."""
        self._loads[digest] -= 1
        if not self._loads[digest]:
            del self._loads[digest], self._choices[digest], self._checks[digest]
            self._pipeline.unload(digest)

    def credits(self, requests: int) -> int:  # noqa: ARG002  # part of the protocol
        """See Encoder."""
        return ITEMS_PER_THREAD * self._cores - len(self._taken)

    def submit(self, item: Item, *, present: int) -> None:
        """See Encoder."""
        wide = self._choices[item.backbone].wide(present)
        self._items[item.id] = work = _InProgress(item, wide=wide, single=present == 1)
        self._taken.add(item.id)
        self._queue.put(work)

    def cancel(self, identifier: int) -> None:
        """See Encoder."""
        if (work := self._items.get(identifier)) is not None:
            work.cancelled = True

    def works(self) -> bool:
        """See Encoder."""
        return any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        # The event loop has priority: it has little work, and all requests depend on it.
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)  # the process may have a niceness
        os.setpriority(os.PRIO_PROCESS, thread, niceness + NICE)
        while (work := self._queue.get()) is not None:
            self._encode(work)
            if not work.ended:
                self._post(self._free, work.item.id)

    def _encode(self, work: _InProgress) -> None:
        decoded = None if work.cancelled else self._pipeline.decode(work.item)
        deliver = partial(self._deliver_later, work)
        if decoded is None or work.cancelled:
            deliver(cancelled(work.item))
        elif isinstance(decoded, Embeddable):
            decoded.embed(deliver, wide=work.wide)
        else:
            deliver(decoded)

    def _deliver_later(self, work: _InProgress, result: Result) -> None:
        work.ended = True
        self._post(self._end, result)

    def _post(self, call: Callable[[T], None], argument: T) -> None:
        assert self._loop is not None, "start() comes first"
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(call, argument)

    def _free(self, identifier: int) -> None:
        """Give the credit of an item back whose run is still to come."""
        if identifier in self._taken:
            self._taken.remove(identifier)
            assert self._on_credit is not None, "start() comes first"
            self._on_credit()

    def _end(self, result: Result) -> None:
        work = self._items.pop(result.id, None)
        if work is None:  # it ended when the encoder was closed
            return
        self._taken.discard(result.id)
        choice = self._choices.get(work.item.backbone)
        if work.single and choice is not None and isinstance(result, Encoded):
            choice.measured(work.wide, result.computed)
        assert self._deliver is not None, "start() comes first"
        self._deliver(result)

    def _join(self) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if alive := sorted(thread.name for thread in self._threads if thread.is_alive()):
            log.warning("threads still at work", threads=alive)
        self._pipeline.close()


@dataclass(slots=True)
class _InProgress:
    """Item without a result."""

    item: Item
    wide: bool
    single: bool
    cancelled: bool = False
    ended: bool = False
    """True if its result is on its way to the event loop."""
