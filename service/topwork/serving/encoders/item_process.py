"""One encoder process, seen from the server: its items, its progress, and its restart."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from abc import abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from topwork.limits import InputLimits
from topwork.runtime import supervisor
from topwork.runtime.relay import Format
from topwork.runtime.supervisor import Supervisor
from topwork.serving.encoders.encoder import Item, Result
from topwork.serving.encoders.messages import Cancel, Message, Unframer, frame
from topwork.serving.encoders.progress import Progress

log = structlog.get_logger(__name__)

R = TypeVar("R")


class Owner(Protocol):
    """Owner of an encoder process."""

    def has_capacity(self) -> None:
        """Use a process that takes items again."""

    def delivered(self, result: Result) -> None:
        """Take the result of an item."""

    def died(self, items: list[Item], at_work: Item | None) -> None:
        """Take back the items of a process that has ended, in order."""


class ItemProcess(Supervisor[InputLimits, Format, int], Generic[R]):
    """Encoder process, which answers with responses R. It works on its items in order.

    All calls belong to one event loop.
    """

    def __init__(
        self,
        owner: Owner,
        name: str,
        target: Callable[[Connection, InputLimits, Format, int], None],
        responses: msgspec.msgpack.Decoder[R],
        *,
        limits: InputLimits,
        log_format: Format,
        most_growth: int,
    ) -> None:
        super().__init__(name, target, limits, log_format, most_growth)
        self.items: dict[int, Item] = {}
        """Items without a result, in order."""
        self.ready = asyncio.Event()
        """Set while the process takes items."""
        self._taken_back: set[int] = set()
        """Items taken back whose old copies the process has not dropped yet."""
        self._owner = owner
        self._responses = responses
        self._transport: asyncio.Transport | None = None
        self._receiver: _Receiver[R] | None = None
        self._worked = self._gave_up = False
        self._seen, self._since = (0, 0), 0.0
        """Item in progress and oldest item when they last changed, and the time."""
        self._progress: Progress | None = None

    def works(self) -> bool:
        """Return True if the process takes items."""
        return self.ready.is_set()

    def capacity(self, most: int) -> int:
        """Return the number of items that it may get, to have ``most`` of them.

        None as long as it has old copies of items that were taken back: their results, which are
        ignored, could not be told from those of the same items.
        """
        return max(0, most - len(self.items)) if self.works() and not self._taken_back else 0

    def cancel(self, identifier: int) -> None:
        """Drop an item unless its run has begun; it gets a result nevertheless."""
        self._send(Cancel(id=identifier))

    def overdue(self, seconds: float) -> bool:
        """Return True if the process has been at the same item for longer than ``seconds``.

        Must be called from time to time, since it is what looks at the progress.
        """
        seen, now = (self._at_work(), next(iter(self.items), 0)), time.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        return bool(self.items) and now - self._since > seconds and not self._gave_up

    def give_up(self) -> Item | None:
        """Kill the process; return the item in progress, which gets no result."""
        self._gave_up = True
        self.ready.clear()
        self.kill()
        return self.items.pop(self._seen[0], None)

    def take_back(self) -> list[Item]:
        """Return the items in reserve, which get no result here."""
        reserve = [item for item in self.items if item != self._at_work()]
        for item in reserve:
            self.cancel(item)
        self._taken_back.update(reserve)
        return [self.items.pop(item) for item in reserve]

    async def aclose(self) -> None:
        """End the process."""
        self._disconnect()
        await super().aclose()

    def _send(self, message: Message) -> None:
        if self._transport is not None:  # else its items are taken back soon
            self._transport.writelines(frame(message))

    @abstractmethod
    def _received(self, response: R) -> None:
        """Take a response of the process."""

    def _share(self, link: socket.socket) -> None:
        """Send the process what else it shares with the server."""

    async def _prepare(self) -> None:
        """Make a process that has started ready for items."""

    def _is_awaited(self, identifier: int) -> bool:
        """Remove an item that has ended; return False if another process has it by now."""
        if identifier in self._taken_back:
            self._taken_back.remove(identifier)
            if not self._taken_back:
                self._owner.has_capacity()
            return False
        return self.items.pop(identifier, None) is not None

    async def _started(self, pipe: Connection) -> None:
        link = socket.socket(fileno=os.dup(pipe.fileno()))
        pipe.close()
        self._progress = Progress.shared(link)
        self._share(link)
        link.setblocking(False)
        receiver = self._receiver = _Receiver(
            Unframer(self._responses), self._received, self._lost, self.kill
        )
        self._transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: receiver, sock=link
        )
        await self._prepare()
        self.ready.set()
        self._worked = True
        self._owner.has_capacity()

    def _ended(self, exit_code: int | None) -> float:
        worked, blameless = self._worked, exit_code == 0 or self._gave_up
        self._disconnect()
        self._worked = self._gave_up = False
        items, self.items = self.items, {}
        self._taken_back.clear()
        at_work = 0 if blameless else self._at_work()
        self._owner.died(list(items.values()), items.get(at_work))
        if worked:
            self._pause = 0.0
        else:
            pause = max(2 * self._pause, supervisor.RESTART_SECONDS)
            self._pause = min(pause, supervisor.LONGEST_RESTART_SECONDS)
        return self._pause

    def _at_work(self) -> int:
        """Return the item in progress; 0: none."""
        return 0 if self._progress is None else self._progress.item

    def _lost(self, receiver: _Receiver[R]) -> None:
        if receiver is self._receiver:  # else another process runs by now
            self._disconnect()

    def _disconnect(self) -> None:
        self.ready.clear()
        if self._transport is not None:
            self._transport.close()
            self._transport = None


class _Receiver(asyncio.Protocol, Generic[R]):
    """Reader of the responses of a process."""

    def __init__(
        self,
        unframer: Unframer[R],
        receive: Callable[[R], None],
        lost: Callable[[_Receiver[R]], None],
        kill: Callable[[], None],
    ) -> None:
        self._unframer = unframer
        self._receive = receive
        self._lost = lost
        self._kill = kill

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            for response in self._unframer.feed(data):
                self._receive(response)
        except msgspec.DecodeError as error:  # its memory is damaged
            log.error("encoder process sends nonsense", error=str(error))
            self._kill()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # part of the protocol
        """See asyncio.Protocol."""
        self._lost(self)
