"""Slots for concurrent calls, shared among callers by a dynamic threshold."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from topwork.errors import Overloaded


class Slots:
    """Counter of calls against ``most``. No caller may hold more slots than it leaves free.

    So the first caller gets at most half, the second a quarter, and another caller finds a free
    slot until many together hold all. Source: Choudhury and Hahne, "Dynamic queue length
    thresholds for shared-memory packet switches", 1998. Belongs to one event loop.
    """

    def __init__(self, most: int, *, calls: str, reason: str, retry_after: float) -> None:
        """Take the fields of Overloaded; ``calls`` is the plural noun in its message."""
        self._most = most
        self._calls = calls
        self._reason = reason
        self._retry_after = retry_after
        self._held: Counter[str] = Counter()
        self._free = most

    def held(self, caller: str) -> int:
        """Return the number of slots that a caller holds."""
        return self._held[caller]

    def may_take(self, caller: str, *, without: str | None = None) -> bool:
        """Return True if ``caller`` may take a slot, after ``without`` gives back one."""
        own = self._held[caller] - (without == caller)
        return own < self._free + (without is not None)

    @contextlib.contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Take a slot for the length of a ``with`` block. Raises Overloaded."""
        self.take(caller)
        try:
            yield
        finally:
            self.give(caller)

    def take(self, caller: str) -> None:
        """Take a slot, until ``give``. Raises Overloaded if the caller may not."""
        if not self.may_take(caller):
            raise Overloaded(
                f"{self._most - self._free} {self._calls} are open, {self._held[caller]} of them "
                f"yours; the limit is {self._most}, and a caller may hold no more than are free",
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
