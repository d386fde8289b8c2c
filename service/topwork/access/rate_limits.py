"""Rate limits of a principal: calls per second, concurrent calls, concurrent images."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from topwork.errors import Overloaded

RETRY_SECONDS = 0.1
"""Lowering it makes refused calls and waiting messages check the limits more often."""


class CallLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of a principal, as in the access file. None: only the server's limits apply."""

    calls_per_second: float | None = None
    """Average rate; after a pause a burst of one second's calls, at least one, is allowed."""
    calls: int | None = None
    """Concurrent calls, streams included."""
    images: int | None = None
    """Images being classified concurrently."""

    def __post_init__(self) -> None:
        """Raise ValueError unless all limits are above zero."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be above 0")


class RateLimiter:
    """Token bucket and counters of one principal. Belongs to one event loop."""

    def __init__(self, limits: CallLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._tokens = self._burst
        self._filled = clock()
        self._calls = 0
        self._images = 0
        self._changed = asyncio.Event()

    def change(self, limits: CallLimits) -> None:
        """Replace the limits; calls and images in progress still count."""
        self._until_next()  # refills at the old rate until now
        self.limits = limits
        self._changed.set()

    def begin(self) -> None:
        """Count a call, until ``end``. Raises Overloaded."""
        limit = self.limits.calls
        if limit is not None and self._calls >= limit:
            raise Overloaded(
                f"{self._calls} of your calls are in progress; the limit is {limit}",
                retry_after=RETRY_SECONDS,
                reason="TOO_MANY_CALLS",
            )
        if delay := self._until_next():
            raise Overloaded(
                f"you exceed your rate limit of {self.limits.calls_per_second:g} calls per second",
                retry_after=delay,
                reason="RATE_LIMIT",
            )
        self._tokens -= 1.0
        self._calls += 1

    def end(self) -> None:
        """Count a call no longer."""
        self._calls -= 1

    def take(self, images: int) -> None:
        """Count images, until ``give``. Raises Overloaded."""
        if not self._has_capacity(images):
            raise Overloaded(
                f"{self._images} of your images are in progress, {images} more would exceed the "
                f"limit of {self.limits.images}",
                retry_after=RETRY_SECONDS,
                reason="TOO_MANY_IMAGES_AT_A_TIME",
            )
        self._images += images

    def give(self, images: int) -> None:
        """Count images no longer."""
        self._images -= images
        self._changed.set()

    async def wait(self, images: int) -> None:
        """Wait, then count a stream's message as a call, and its images until ``give``."""
        while (delay := self._until_next()) or not self._has_capacity(images):
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay or RETRY_SECONDS):
                    await self._changed.wait()
        self._tokens -= 1.0
        self._images += images

    @property
    def _burst(self) -> float:
        return max(1.0, self.limits.calls_per_second or 0.0)

    def _until_next(self) -> float:
        """Refill the token bucket and return the seconds until another call may begin."""
        rate = self.limits.calls_per_second
        if rate is None:
            self._tokens = self._burst
            return 0.0
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * rate)
        self._filled = now
        return max(0.0, (1.0 - self._tokens) / rate)

    def _has_capacity(self, images: int) -> bool:
        limit = self.limits.images
        # A request above the limit is admitted alone; otherwise it would never be.
        return limit is None or not self._images or self._images + images <= limit
