"""Admission control: a request without room, or without time, is refused at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from topwork.errors import Overloaded
from topwork.limits import DEFAULT_LIMITS

SURE = 0.8
"""Of its budget, what a request may be expected to take: what ends late was computed in vain."""


class Admission:
    """Counts images in the server against ``limit``, and their bytes against ``most_bytes``.

    Belongs to one event loop.
    """

    def __init__(
        self,
        limit: int,
        expected_seconds: Callable[[int], float],
        *,
        most_bytes: int = DEFAULT_LIMITS.max_queue_bytes,
    ) -> None:
        self._limit = limit
        self._most_bytes = most_bytes
        self._expected_seconds = expected_seconds
        self._inside = self._bytes = 0
        self._patient_inside = self._patient_bytes = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @property
    def inside(self) -> int:
        """Images that were let in and have not left."""
        return self._inside

    async def enter(
        self, images: int, *, size: int = 0, budget: float | None, patient: bool
    ) -> None:
        """Take room for ``images`` of ``size`` bytes together that have ``budget`` seconds.

        Who was let in must ``leave``. Who is ``patient`` waits for room, in order of coming, in
        half of the limits: streams, which always have more to send, leave the rest to others. Those
        get Overloaded when there is no room, or when the images would not end within the budget.
        """
        if not patient:
            self._check(images, size, budget)
            self._inside += images
            self._bytes += size
        elif self._waiting or not self._has_room_for_patient(images, size):
            await self._wait(images, size)
        else:
            self._let_in_patient(images, size)

    def leave(self, images: int, *, size: int = 0, patient: bool) -> None:
        """Give room back."""
        self._inside -= images
        self._bytes -= size
        if patient:
            self._patient_inside -= images
            self._patient_bytes -= size
        while self._waiting:
            waiting, length, turn = self._waiting[0]
            if not (turn.done() or self._has_room_for_patient(waiting, length)):
                return
            self._waiting.popleft()
            if not turn.done():  # else its caller has gone
                self._let_in_patient(waiting, length)
                turn.set_result(None)

    async def _wait(self, images: int, size: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((images, size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # room was given in the same moment
                self.leave(images, size=size, patient=True)
            raise

    def _let_in_patient(self, images: int, size: int) -> None:
        self._inside += images
        self._bytes += size
        self._patient_inside += images
        self._patient_bytes += size

    def _check(self, images: int, size: int, budget: float | None) -> None:
        if not _fits(images, self._inside, self._limit):
            raise Overloaded(
                f"{self._inside} images are queued, {images} more would pass the limit of "
                f"{self._limit}",
                retry_after=self._expected_seconds(images),
            )
        if not _fits(size, self._bytes, self._most_bytes):
            raise Overloaded(
                f"{self._bytes} bytes of images are queued, {size} more would pass the limit of "
                f"{self._most_bytes}",
                retry_after=self._expected_seconds(images),
            )
        if budget is None or not self._inside:
            return
        expected = self._expected_seconds(images)
        if expected > SURE * budget:
            raise Overloaded(
                f"{images} images would end in {expected:.3f} s, since {self._inside} are queued; "
                f"the call has {budget:.3f} s",
                retry_after=expected - SURE * budget,
                reason="NO_TIME",
            )

    def _has_room_for_patient(self, images: int, size: int) -> bool:
        return (
            _fits(images, self._inside, self._limit)
            and _fits(images, self._patient_inside, self._limit // 2)
            and _fits(size, self._bytes, self._most_bytes)
            and _fits(size, self._patient_bytes, self._most_bytes // 2)
        )


def _fits(more: int, inside: int, limit: int) -> bool:
    # What is larger than the whole limit is let in when it is alone: it could never be else.
    return not inside or inside + more <= limit
