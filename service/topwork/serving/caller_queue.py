"""Fair queue of callers: callers take turns, and so do the calls of each caller."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

from topwork.serving.fair_queue import FairQueue, Flow, Ticket

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Caller(Generic[T]):
    """Caller with waiting images."""

    name: str
    turn: float
    """Turn of its next image."""
    calls: FairQueue[T]
    entry: int = 0
    """Number of its valid entry in the heap."""
    deadline: float = 0.0
    """Earliest deadline when that entry was made."""


@dataclass(slots=True, eq=False)
class CallTicket(Generic[T]):
    """Request batch in the queue."""

    caller: _Caller[T]
    ticket: Ticket[T]


class CallerQueue(Generic[T]):
    """Two fair queues, one inside the other: who makes many calls at once has no more turns.

    Of two callers with waiting images, each has every other image, whatever their numbers of calls
    and images; within a round of turns, the earliest deadline goes first. See FairQueue, which
    orders the calls of each caller in the same way. Not thread-safe.
    """

    def __init__(self) -> None:
        self._callers: dict[str, _Caller[T]] = {}
        self._heap: list[tuple[int, float, int, _Caller[T]]] = []
        self._now = 0.0
        self._numbers = itertools.count(1)
        self._pushed = 0
        """Number of all images so far."""
        self._images = 0
        self._requests = 0

    def __len__(self) -> int:
        """Return the number of waiting images."""
        return self._images

    @property
    def requests(self) -> int:
        """Number of request batches with waiting images."""
        return self._requests

    def push(
        self, work: T, images: int, *, deadline: float, flow: Flow, caller: str
    ) -> CallTicket[T]:
        """Add a request batch of ``images``; see FairQueue.push."""
        waiting = self._callers.get(caller)
        if waiting is None:
            # Flows outlive this queue; none has a turn above the number of all images so far.
            calls: FairQueue[T] = FairQueue(now=float(self._pushed))
            waiting = self._callers[caller] = _Caller(caller, self._now, calls)
        ticket = waiting.calls.push(work, images, deadline=deadline, flow=flow)
        self._pushed += images
        self._images += images
        self._requests += 1
        if not waiting.entry or deadline < waiting.deadline:
            self._wait(waiting, deadline)
        return CallTicket(waiting, ticket)

    def pop(self) -> tuple[T, int] | None:
        """Remove the next image; return its batch and position, or None if the queue is empty."""
        while self._heap:
            *_, number, caller = heapq.heappop(self._heap)
            if number != caller.entry:
                continue
            requests = caller.calls.requests
            image = caller.calls.pop()
            assert image is not None, "it has waiting images"
            self._now += 1 / len(self._callers)
            self._images -= 1
            self._requests += caller.calls.requests - requests
            caller.turn += 1
            if len(caller.calls):
                self._wait(caller, caller.calls.deadline)
            else:
                self._leave(caller)
            return image
        return None

    def remove(self, ticket: CallTicket[T]) -> None:
        """Remove the waiting images of a request batch, if there are any."""
        caller = ticket.caller
        before = len(caller.calls), caller.calls.requests
        caller.calls.remove(ticket.ticket)
        self._images += len(caller.calls) - before[0]
        self._requests += caller.calls.requests - before[1]
        if before[0] and not len(caller.calls):
            self._leave(caller)

    def ahead(self, images: int, caller: str) -> int:
        """Return the most waiting images that may precede the last of ``images`` new ones."""
        waiting = self._callers.get(caller)
        own = 0 if waiting is None else len(waiting.calls)
        others = len(self._callers) - (waiting is not None)
        own_ahead = 0 if waiting is None else waiting.calls.ahead(images)
        return own_ahead + min(self._images - own, others * (own_ahead + images))

    def _wait(self, caller: _Caller[T], deadline: float) -> None:
        caller.entry, caller.deadline = next(self._numbers), deadline
        heapq.heappush(self._heap, (int(caller.turn), deadline, caller.entry, caller))
        if len(self._heap) > 2 * len(self._callers) + 16:
            self._heap = [entry for entry in self._heap if entry[2] == entry[3].entry]
            heapq.heapify(self._heap)

    def _leave(self, caller: _Caller[T]) -> None:
        caller.entry = 0
        del self._callers[caller.name]
