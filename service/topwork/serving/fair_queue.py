"""Fair queue of images: callers take turns; within a turn, the earliest deadline goes first."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Flow:
    """Turns of one caller. The messages of a stream share a flow."""

    turn: float = 0.0
    """Turn of this caller's next image."""
    waiting: int = 0
    """Number of this caller's images in the queue."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """Request batch in the queue; each of its images has its own turn."""

    work: T | None
    flow: Flow
    deadline: float
    turn: float
    number: int
    images: int
    left: int


class FairQueue(Generic[T]):
    """Weighted fair queueing of equal flows, with earliest deadline first within each round.

    The virtual time ``now`` advances by 1 when every waiting flow has had one image. A new flow
    starts at ``now``, so an earlier request of 256 images does not delay it; and since time
    advances with every image served, later flows cannot starve it. Not thread-safe. Source: Demers,
    Keshav and Shenker, "Analysis and simulation of a fair queueing algorithm", 1989.
    """

    def __init__(self, now: float = 0.0) -> None:
        """Start at the virtual time ``now``, which no turn of a flow may exceed."""
        self._heap: list[tuple[int, float, int, Ticket[T]]] = []
        self._now = now
        self._numbers = itertools.count()
        self._flows = 0
        self._tickets = 0
        self._images = 0

    def __len__(self) -> int:
        """Return the number of waiting images."""
        return self._images

    @property
    def requests(self) -> int:
        """Number of request batches with waiting images."""
        return self._tickets

    @property
    def deadline(self) -> float:
        """Deadline of the next image; there must be one."""
        while self._heap[0][-1].work is None:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def push(self, work: T, images: int, *, deadline: float, flow: Flow) -> Ticket[T]:
        """Add a request batch of ``images``; all deadlines are in seconds of the same clock."""
        turn = max(self._now, flow.turn)
        flow.turn = turn + images
        ticket = Ticket(work, flow, deadline, turn, next(self._numbers), images, images)
        self._count(flow, images)
        self._tickets += 1
        self._wait(ticket)
        return ticket

    def pop(self) -> tuple[T, int] | None:
        """Remove the next image; return its batch and position, or None if the queue is empty."""
        while self._heap:
            *_, ticket = heapq.heappop(self._heap)
            if ticket.work is None:
                continue
            image = ticket.work, ticket.images - ticket.left
            self._now += 1 / self._flows
            self._count(ticket.flow, -1)
            ticket.left -= 1
            ticket.turn += 1
            if ticket.left:
                self._wait(ticket)
            else:
                self._end(ticket)
            return image
        return None

    def remove(self, ticket: Ticket[T]) -> None:
        """Remove the waiting images of a request batch, if there are any."""
        if ticket.work is None:
            return
        self._count(ticket.flow, -ticket.left)
        ticket.flow.turn -= ticket.left
        self._end(ticket)
        if len(self._heap) > 2 * self._tickets + 16:
            self._heap = [entry for entry in self._heap if entry[-1].work is not None]
            heapq.heapify(self._heap)

    def ahead(self, images: int) -> int:
        """Return the number of waiting images that may precede the last of ``images`` new ones."""
        return min(self._images, self._flows * images)

    def _wait(self, ticket: Ticket[T]) -> None:
        heapq.heappush(self._heap, (int(ticket.turn), ticket.deadline, ticket.number, ticket))

    def _end(self, ticket: Ticket[T]) -> None:
        ticket.work = None
        self._tickets -= 1

    def _count(self, flow: Flow, images: int) -> None:
        before = flow.waiting > 0
        flow.waiting += images
        self._images += images
        self._flows += (flow.waiting > 0) - before
