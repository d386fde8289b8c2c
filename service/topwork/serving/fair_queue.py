"""Fair queue of images: callers in turns, and within a turn the earliest deadline first."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Flow:
    """One caller's place in the turns. The messages of a stream share one."""

    turn: float = 0.0
    """In which turn this caller's next image comes."""
    waiting: int = 0
    """This caller's images in the queue."""


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A request batch in the queue: each of its images comes in a turn of its own."""

    work: T | None
    flow: Flow
    deadline: float
    turn: float
    number: int
    images: int
    left: int


class FairQueue(Generic[T]):
    """Weighted fair queueing of equal flows, with earliest deadline first within each round.

    The virtual time ``now`` advances by one when every waiting flow has had one image. A new flow
    starts at ``now``, so it is not held up by a request of 256 images that came before; and since
    time goes on with every image served, those that came later cannot starve it either. Not
    thread-safe. Source: Demers, Keshav and Shenker, "Analysis and simulation of a fair queueing
    algorithm", 1989.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Ticket[T]]] = []
        self._now = 0.0
        self._numbers = itertools.count()
        self._flows = 0
        self._tickets = 0
        self._images = 0

    def __len__(self) -> int:
        """Return the number of images that wait."""
        return self._images

    @property
    def requests(self) -> int:
        """How many request batches have images that wait."""
        return self._tickets

    def push(self, work: T, images: int, *, deadline: float, flow: Flow) -> Ticket[T]:
        """Add a request batch of ``images``; ``deadline`` in seconds of any one clock."""
        turn = max(self._now, flow.turn)
        flow.turn = turn + images
        ticket = Ticket(work, flow, deadline, turn, next(self._numbers), images, images)
        self._count(flow, images)
        self._tickets += 1
        self._wait(ticket)
        return ticket

    def pop(self) -> tuple[T, int] | None:
        """Remove the next image; return its request batch and its position there, None if none."""
        while self._heap:
            *_, ticket = heapq.heappop(self._heap)
            if ticket.work is None:
                continue
            found = ticket.work, ticket.images - ticket.left
            self._now += 1 / self._flows
            self._count(ticket.flow, -1)
            ticket.left -= 1
            ticket.turn += 1
            if ticket.left:
                self._wait(ticket)
            else:
                self._end(ticket)
            return found
        return None

    def remove(self, ticket: Ticket[T]) -> None:
        """Take out the images of a request batch that still wait; nothing if there are none."""
        if ticket.work is None:
            return
        self._count(ticket.flow, -ticket.left)
        ticket.flow.turn -= ticket.left
        self._end(ticket)
        if len(self._heap) > 2 * self._tickets + 16:
            self._heap = [one for one in self._heap if one[-1].work is not None]
            heapq.heapify(self._heap)

    def ahead(self, images: int) -> int:
        """Return how many of the waiting images may go before a new request batch's last one."""
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
