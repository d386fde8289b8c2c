"""Encoder with a process per core: no interpreter lock is shared, and a crash ends one process."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from topwork.bundle.manifest import BackboneInfo
from topwork.errors import ImageCrash
from topwork.limits import InputLimits
from topwork.runtime.agreement import least
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.serving.encoders.core_choice import CoreChoice
from topwork.serving.encoders.encoder import Check, Deliver, Encoded, Failed, Item, Refused, Result
from topwork.serving.encoders.encoder_process import EncoderProcess
from topwork.serving.encoders.messages import Load, Loaded, frame
from topwork.serving.encoders.pipeline import cancelled

log = structlog.get_logger(__name__)

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

LOADS = 4
"""Raising it loads a backbone into more processes at once, each with a copy in this one."""

CHECK_SECONDS = 0.25
"""Raising it looks less often for images that take too long."""


@dataclass(slots=True)
class _Loaded:
    """Backbone of all processes."""

    info: BackboneInfo
    model: Callable[[], bytes]
    choice: CoreChoice
    check: Check
    loads: int = 1


@dataclass(slots=True)
class _Pending:
    """Item without a result."""

    item: Item
    wide: bool
    single: bool
    deaths: int = 0
    cancelled: bool = False
    process: EncoderProcess | None = None


class ProcessEncoder:
    """See Encoder. The first process has a session on all cores, too, for single images.

    A process that ends is started again. Its items go to other processes, but an image that was in
    progress in two processes that ended is refused, as is one that takes longer than
    IMAGE_SECONDS, whose process is killed.
    """

    def __init__(
        self,
        *,
        provider: Provider,
        cores: int,
        limits: InputLimits,
        log_format: Format,
        most_growth: int = MOST_GROWTH,
    ) -> None:
        self._deliver: Deliver | None = None
        self._on_credit: Callable[[], None] | None = None
        self._cores = cores
        self._processes = [
            EncoderProcess(
                self,
                f"topwork-encoder-{number}",
                provider=provider,
                limits=limits,
                log_format=log_format,
                most_growth=most_growth,
            )
            for number in range(cores)
        ]
        self._backbones: dict[str, _Loaded] = {}
        self._loading = asyncio.Lock()
        self._pending: dict[int, _Pending] = {}
        self._waiting: deque[_Pending] = deque()
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

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:
        """See Encoder. Raises ConnectionError if no process lives."""
        async with self._loading:
            if (known := self._backbones.get(info.digest)) is not None:
                known.loads += 1
                return known.check
            content = await asyncio.to_thread(model)
            ready = list(self._ready())
            try:
                # The first before the others, which would disturb its measurement.
                loaded = await self._load_all(info, content, ready[:1])
                for begin in range(1, len(ready), LOADS):
                    loaded += await self._load_all(info, content, ready[begin : begin + LOADS])
            except BaseException:
                self._unload_from(ready, info.digest)
                raise
            if not loaded:
                raise ConnectionError(errno.ECONNREFUSED, "no encoder process is running")
            choice = CoreChoice(info.name, loaded[0].one_core, loaded[0].all_cores)
            check = Check(
                agreement=least(each.check.agreement for each in loaded),
                provider=loaded[0].check.provider,
            )
            self._backbones[info.digest] = _Loaded(info, model, choice, check)
            return check

    def unload(self, digest: str) -> None:
        """See Encoder."""
        backbone = self._backbones[digest]
        backbone.loads -= 1
        if not backbone.loads:
            del self._backbones[digest]
            self._unload_from(self._processes, digest)

    def credits(self, requests: int) -> int:
        """See Encoder."""
        self._most = min(MIN_ITEMS + requests // REQUESTS_PER_ITEM, MOST_ITEMS)
        free = sum(process.capacity(self._most) for process in self._processes)
        return free - len(self._waiting)

    def submit(self, item: Item, *, present: int) -> None:
        """See Encoder."""
        choice = self._backbones[item.backbone].choice
        pending = _Pending(item, wide=choice.wide(present), single=present == 1)
        self._pending[item.id] = pending
        self._waiting.append(pending)
        self._hand_over()

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

    async def prepare(self, process: EncoderProcess) -> None:
        """See Owner. Raises the errors of a load, which end the process."""
        async with self._loading:
            for digest, backbone in list(self._backbones.items()):
                content = await asyncio.to_thread(backbone.model)
                cores = self._cores_of(process)
                framed = await _framed(backbone.info, content, cores)
                loaded = await process.load(digest, framed)
                if cores > 1:
                    seconds = loaded.one_core, loaded.all_cores
                    backbone.choice = CoreChoice(backbone.info.name, *seconds)
                if digest not in self._backbones:  # unloaded meanwhile
                    process.unload(digest)

    def has_capacity(self) -> None:
        """See Owner."""
        self._hand_over()
        assert self._on_credit is not None, "start() comes first"
        self._on_credit()

    def delivered(self, result: Result) -> None:
        """See Owner."""
        pending = self._pending[result.id]
        if pending.single and isinstance(result, Encoded):
            backbone = self._backbones.get(pending.item.backbone)
            if backbone is not None:
                backbone.choice.measured(pending.wide, result.computed)
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

    def _ready(self) -> Iterator[EncoderProcess]:
        return (process for process in self._processes if process.works())

    async def _load_all(
        self, info: BackboneInfo, model: bytes, processes: list[EncoderProcess]
    ) -> list[Loaded]:
        """Load a backbone into processes; return the answers of those that do not end meanwhile.

        Raises Corrupt and NotReady.
        """
        framed = {
            cores: await _framed(info, model, cores)
            for cores in set(map(self._cores_of, processes))
        }
        results = await asyncio.gather(
            *(process.load(info.digest, framed[self._cores_of(process)]) for process in processes),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ConnectionError):
                raise result
        return [result for result in results if isinstance(result, Loaded)]

    def _cores_of(self, process: EncoderProcess) -> int:
        """Return the cores of a process's largest session."""
        return self._cores if process is self._processes[0] else 1

    def _unload_from(self, processes: Sequence[EncoderProcess], digest: str) -> None:
        for process in processes:
            process.unload(digest)

    def _wait_again(self, items: list[Item]) -> None:
        """Let items of a process wait for another one, but not those whose caller has left."""
        again = [self._pending[item.id] for item in items]
        for pending in again:
            pending.process = None
        self._waiting.extendleft(pending for pending in reversed(again) if not pending.cancelled)
        for pending in again:
            if pending.cancelled:
                self._end(cancelled(pending.item))

    def _take_back(self, process: EncoderProcess) -> None:
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
            process.encode(pending.item, wide=pending.wide)

    def _process_for(self, pending: _Pending) -> EncoderProcess | None:
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


async def _framed(info: BackboneInfo, model: bytes, cores: int) -> tuple[bytes, bytes]:
    return await asyncio.to_thread(frame, Load(info=info, model=model, cores=cores))
