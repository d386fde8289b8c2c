"""Rate limits of one principal: calls a second, calls at a time, images at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from topwork.errors import Overloaded

HELD_SECONDS = 0.1
"""After which it makes sense to look again for what others must give back first."""


class CallLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one principal, as the access file has them. None: no limit but the server's."""

    calls_per_second: float | None = None
    """Over time; as many, at least one, may come at once after a pause."""
    calls: int | None = None
    """At a time, streams too."""
    images: int | None = None
    """To be classified, at a time."""

    def __post_init__(self) -> None:
        """Raise ValueError unless all are above zero."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be above 0")


class RateLimiter:
    """What one principal has used of its limits. Belongs to one event loop."""

    def __init__(self, limits: CallLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._tokens = self._burst
        self._filled = clock()
        self._calls = 0
        self._images = 0
        self._left = asyncio.Event()

    def change(self, limits: CallLimits) -> None:
        """Let other limits count from now on; what was used stays used."""
        self._until_next()  # fills by the rate that counted so far
        self.limits = limits
        self._left.set()

    def begin(self) -> None:
        """Take a call's part, until ``end``. Raises Overloaded."""
        most = self.limits.calls
        if most is not None and self._calls >= most:
            raise Overloaded(
                f"{self._calls} of your calls are in the server; the limit is {most}",
                retry_after=HELD_SECONDS,
                reason="TOO_MANY_CALLS",
            )
        if delay := self._until_next():
            raise Overloaded(
                f"you call more than {self.limits.calls_per_second:g} times a second",
                retry_after=delay,
                reason="RATE_LIMIT",
            )
        self._tokens -= 1.0
        self._calls += 1

    def end(self) -> None:
        """Give a call's part back."""
        self._calls -= 1

    def take(self, images: int) -> None:
        """Take room for images, until ``give``. Raises Overloaded."""
        if not self._has_room(images):
            raise Overloaded(
                f"{self._images} of your images are in the server, {images} more would pass the "
                f"limit of {self.limits.images}",
                retry_after=HELD_SECONDS,
                reason="TOO_MANY_IMAGES_AT_A_TIME",
            )
        self._images += images

    def give(self, images: int) -> None:
        """Give their room back."""
        self._images -= images
        self._left.set()

    async def wait(self, images: int) -> None:
        """Take a call's part for a message of a stream, and room for its images, until ``give``."""
        while (delay := self._until_next()) or not self._has_room(images):
            self._left.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay or HELD_SECONDS):
                    await self._left.wait()
        self._tokens -= 1.0
        self._images += images

    @property
    def _burst(self) -> float:
        return max(1.0, self.limits.calls_per_second or 0.0)

    def _until_next(self) -> float:
        """Return the seconds until another call may begin."""
        rate = self.limits.calls_per_second
        if rate is None:
            self._tokens = self._burst
            return 0.0
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * rate)
        self._filled = now
        return max(0.0, (1.0 - self._tokens) / rate)

    def _has_room(self, images: int) -> bool:
        most = self.limits.images
        # What is larger than the limit is let in when it is alone: it could never be else.
        return most is None or not self._images or self._images + images <= most
