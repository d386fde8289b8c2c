"""Admission control: load shedding of requests that exceed the capacity or their deadline."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from topwork.errors import Overloaded
from topwork.limits import DEFAULT_LIMITS

BUDGET_SHARE = 0.8
"""Largest share of its time budget that a request may be expected to take.

Raising it admits more requests that miss their deadline after their images were computed.
"""


class Admission:
    """Limits the images in the server to ``limit`` and their bytes to ``max_bytes``.

    One caller may use all of it. Yet the calls of each of N callers can have its share, ``limit /
    N`` images, whatever the others have: until they have finished, there are more than ``limit``,
    but at most twice as many. All state belongs to one event loop.
    """

    def __init__(
        self,
        limit: int,
        expected_seconds: Callable[[int, str], float],
        *,
        max_bytes: int = DEFAULT_LIMITS.max_queue_bytes,
    ) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        self._expected_seconds = expected_seconds
        self._admitted = self._bytes = 0
        self._images_of: Counter[str] = Counter()
        """Admitted images by caller."""
        self._can_wait_admitted = self._can_wait_bytes = 0
        self._waiting: deque[tuple[int, int, str, asyncio.Future[None]]] = deque()

    @property
    def admitted(self) -> int:
        """Number of images that are admitted and not released."""
        return self._admitted

    async def acquire(
        self,
        images: int,
        *,
        size: int = 0,
        budget: float | None,
        can_wait: bool,
        caller: str = "",
    ) -> None:
        """Admit ``images`` of ``size`` bytes in total with a time budget of ``budget`` seconds.

        Every admitted request must call ``release``. A request that ``can_wait`` waits for capacity
        in order of arrival and uses at most half of the limits: streams always have more to send,
        and must leave capacity for others. Any other request raises Overloaded if there is no
        capacity, or if its images would not finish within the budget.
        """
        if not can_wait:
            self._check(images, size, budget, caller)
            self._admit(images, size, caller)
        elif self._waiting or not self._has_capacity_for_waiter(images, size):
            await self._wait(images, size, caller)
        else:
            self._admit_waiter(images, size, caller)

    def release(self, images: int, *, size: int = 0, can_wait: bool, caller: str = "") -> None:
        """Release the capacity of an admitted request."""
        self._admitted -= images
        self._bytes -= size
        self._images_of[caller] -= images
        if not self._images_of[caller]:
            del self._images_of[caller]
        if can_wait:
            self._can_wait_admitted -= images
            self._can_wait_bytes -= size
        while self._waiting:
            waiting, length, name, turn = self._waiting[0]
            if not (turn.done() or self._has_capacity_for_waiter(waiting, length)):
                return
            self._waiting.popleft()
            if not turn.done():  # else its caller has cancelled
                self._admit_waiter(waiting, length, name)
                turn.set_result(None)

    async def _wait(self, images: int, size: int, caller: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((images, size, caller, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # admitted at the same moment
                self.release(images, size=size, can_wait=True, caller=caller)
            raise

    def _admit(self, images: int, size: int, caller: str) -> None:
        self._admitted += images
        self._bytes += size
        self._images_of[caller] += images

    def _admit_waiter(self, images: int, size: int, caller: str) -> None:
        self._admit(images, size, caller)
        self._can_wait_admitted += images
        self._can_wait_bytes += size

    def _check(self, images: int, size: int, budget: float | None, caller: str) -> None:
        own = self._images_of.get(caller, 0)
        share = self._limit // (len(self._images_of) + (not own))
        has_share = own + images <= share and self._admitted + images <= 2 * self._limit
        if not has_share and not _fits(images, self._admitted, self._limit):
            raise Overloaded(
                f"{self._admitted} images are queued, {images} more would exceed the limit of "
                f"{self._limit}",
                retry_after=self._expected_seconds(images, caller),
            )
        if not _fits(size, self._bytes, self._max_bytes):
            raise Overloaded(
                f"{self._bytes} bytes of images are queued, {size} more would exceed the limit of "
                f"{self._max_bytes}",
                retry_after=self._expected_seconds(images, caller),
            )
        if budget is None or not self._admitted:
            return
        expected = self._expected_seconds(images, caller)
        if expected > BUDGET_SHARE * budget:
            raise Overloaded(
                f"{images} images would take {expected:.3f} s, since {self._admitted} are queued; "
                f"the call has {budget:.3f} s",
                retry_after=expected - BUDGET_SHARE * budget,
                reason="NO_TIME",
            )

    def _has_capacity_for_waiter(self, images: int, size: int) -> bool:
        return (
            _fits(images, self._admitted, self._limit)
            and _fits(images, self._can_wait_admitted, self._limit // 2)
            and _fits(size, self._bytes, self._max_bytes)
            and _fits(size, self._can_wait_bytes, self._max_bytes // 2)
        )


def _fits(more: int, admitted: int, limit: int) -> bool:
    # A request larger than the limit is admitted when it is alone: otherwise it could never run.
    return not admitted or admitted + more <= limit
