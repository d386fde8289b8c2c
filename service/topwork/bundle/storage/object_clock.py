"""Clock of an object store, which sets the times of objects and may differ from the host's."""

from __future__ import annotations

import contextlib
import time

from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.objects import Objects

_CHECK_SECONDS = 300.0
"""Raising it measures the difference of the clocks less often."""

_ROUNDING = 1.5
"""Difference in seconds that may come from LastModified, which is rounded down to a second."""


class Clock:
    """The store's clock, measured by an object that is written for this."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._measured: tuple[float, float] | None = None

    def now(self) -> float:
        """Return the store's time in seconds since 1970; the host's if it is the same."""
        checked, offset = self._measured or (-_CHECK_SECONDS, 0.0)
        if time.monotonic() - checked >= _CHECK_SECONDS:
            before = time.time()
            facts = None
            with contextlib.suppress(PermissionError):  # a reader has the host's time
                self._objects.put(names.CLOCK, self._objects.nonce())
                facts = self._objects.head(names.CLOCK)
            if facts is not None:
                difference = facts.time_ns / 1e9 - before
                offset = difference + 0.5 if abs(difference) > _ROUNDING else 0.0
            self._measured = time.monotonic(), offset
        return time.time() + offset
