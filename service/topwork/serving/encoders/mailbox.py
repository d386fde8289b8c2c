"""Results of other threads for an event loop, which wakes once for all that come together."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from topwork.serving.encoders.encoder import Deliver, Result


class Mailbox:
    """Mailbox of an event loop, which calls ``deliver`` with each result that is posted."""

    def __init__(self, deliver: Deliver, loop: asyncio.AbstractEventLoop) -> None:
        self._deliver = deliver
        self._loop = loop
        self._results: deque[Result] = deque()
        self._woken = False

    def post(self, result: Result) -> None:
        """Deliver a result soon. May be called in any thread."""
        self._results.append(result)  # before the flag is read: the loop empties after clearing it
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._woken = False
        while self._results:
            self._deliver(self._results.popleft())
