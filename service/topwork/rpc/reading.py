"""Reads messages of calls, and leaves most of the event loop's time to others where they are long.

gRPC copies a message in one step of the event loop and decodes it in the same: about 5 ms a MiB on
a busy machine. Where many long ones come at once their steps would follow each other, and nothing
else would run meanwhile, health included.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

LONG_SECONDS = 0.005
"""Raise it to let more messages be taken at once. A step of less holds up nobody."""

PAUSE = 2.0
"""Raise it to leave more time to others: so many times the length of a long step lie behind it."""


class Reading:
    """Paces the long messages of each caller. Belongs to one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}
        """When each caller's next message may be taken."""

    @types.coroutine
    def take(self, read: Coroutine[Any, Any, T], caller: str) -> Generator[Any, Any, T]:
        """Return what gRPC's ``read`` returns; when a message has come it waits for its turn."""
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
                self._note(caller, start)
            resume, value = read.send, None
            try:
                yield waiting
            except BaseException as error:  # for gRPC to deal with
                resume, value = read.throw, error
                continue
            try:
                if self._next:
                    yield from self._turn(caller).__await__()
            except asyncio.CancelledError as error:
                cancelled = error  # gRPC frees a message that has come only when it is taken

    async def _turn(self, caller: str) -> None:
        # Others may have their turn while this one sleeps, which moves its own.
        while (pause := self._next.get(caller, 0.0) - self._clock()) > 0.0:  # noqa: ASYNC110
            await asyncio.sleep(pause)

    def _note(self, caller: str, start: float) -> None:
        now = self._clock()
        if now - start > LONG_SECONDS:
            self._next = {one: when for one, when in self._next.items() if when > now}
            self._next[caller] = now + PAUSE * (now - start)
