"""Slots for calls at a time, shared among callers by a dynamic threshold."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from topwork.errors import Overloaded


class Slots:
    """Counts calls against ``most``. No caller may have more than it leaves free for the others.

    So one caller has at most half, a second one a quarter, and there is room for one more until
    many together have used it up. Source: Choudhury and Hahne, "Dynamic queue length thresholds
    for shared-memory packet switches", 1998. Belongs to one event loop.
    """

    def __init__(self, most: int, *, calls: str, reason: str, retry_after: float) -> None:
        """Take what errors say: what the ``calls`` are, ``reason`` and ``retry_after``."""
        self._most = most
        self._calls = calls
        self._reason = reason
        self._retry_after = retry_after
        self._held: Counter[str] = Counter()
        self._free = most

    def held(self, caller: str) -> int:
        """Return how many a caller has."""
        return self._held[caller]

    def has_room(self, caller: str, *, without: str | None = None) -> bool:
        """Return whether a caller may have one more, if ``without`` gives one back first."""
        own = self._held[caller] - (without == caller)
        return own < self._free + (without is not None)

    @contextlib.contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Hold a slot. Raises Overloaded if there is none for this caller."""
        self.take(caller)
        try:
            yield
        finally:
            self.give(caller)

    def take(self, caller: str) -> None:
        """Take a slot, until ``give``. Raises Overloaded if there is none for this caller."""
        if not self.has_room(caller):
            raise Overloaded(
                f"{self._most - self._free} {self._calls} are open, {self._held[caller]} of them "
                f"yours; the limit is {self._most}, and each caller leaves as many free as it has",
                retry_after=self._retry_after,
                reason=self._reason,
            )
        self._held[caller] += 1
        self._free -= 1

    def give(self, caller: str) -> None:
        """Give a slot back."""
        self._held[caller] -= 1
        self._free += 1
        if not self._held[caller]:
            del self._held[caller]
