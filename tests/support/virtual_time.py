"""Event loop with virtual time: when all tasks wait, the clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose sleeps and timeouts take no time.

    Threads run in real time: a coroutine that waits for a thread must not have a timeout.
    """
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(scenario)


class _Selector(selectors.SelectSelector):
    """Selector that advances the clock instead of blocking."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.now += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now
