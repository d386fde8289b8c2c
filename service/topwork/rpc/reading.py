"""Rate limit of reading long messages, so that the event loop stays responsive.

gRPC copies and decodes a message in one step of the event loop: about 5 ms a MiB on a busy machine.
Without pauses between them, many long messages at once would block all other calls, health too.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

LONG_SECONDS = 0.005
"""Raising it exempts longer steps of the event loop from the pause."""

PAUSE = 2.0
"""Raising it leaves more time to other calls: the pause is this times the length of the step."""


class Reading:
    """Delays the long messages of each caller. Belongs to one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}
        """Time of each caller's next message."""

    @types.coroutine
    def take(self, read: Coroutine[Any, Any, T], caller: str) -> Generator[Any, Any, T]:
        """Return the result of gRPC's ``read``; a message that has arrived waits for its turn."""
        resume: Callable[[Any], Any] = read.send
        value: Any = None
        cancelled: asyncio.CancelledError | None = None
        while True:
            start = self._clock()
            try:
                waiting = resume(value)
            except StopIteration as end:
                if cancelled is not None:
                    raise cancelled from None
                message: T = end.value
                return message
            finally:
                self._measure(caller, start)
            resume, value = read.send, None
            try:
                yield waiting
            except BaseException as error:  # for gRPC to deal with
                resume, value = read.throw, error
                continue
            try:
                if self._next:
                    yield from self._wait_for_turn(caller).__await__()
            except asyncio.CancelledError as error:
                cancelled = error  # gRPC frees a message only when it is read

    async def _wait_for_turn(self, caller: str) -> None:
        # Another message of this caller may be read meanwhile, which moves this one's turn.
        while (pause := self._next.get(caller, 0.0) - self._clock()) > 0.0:  # noqa: ASYNC110
            await asyncio.sleep(pause)

    def _measure(self, caller: str, start: float) -> None:
        now = self._clock()
        if now - start > LONG_SECONDS:
            self._next = {name: when for name, when in self._next.items() if when > now}
            self._next[caller] = now + PAUSE * (now - start)
