"""Deterministic parallel sums: fixed parts, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


class Threads:
    """At most ``count`` threads that compute at a time; a context manager.

    What the parts are must not depend on ``count``: sums of other parts round otherwise.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
        """Return the result of each part, in their order; no part may call this."""
        return list(map(function, parts) if self._pool is None else self._pool.map(function, parts))

    def together(self, *calls: Callable[[], Result]) -> list[Result]:
        """Return the results of calls that mostly wait for parts of theirs, in their order.

        So the parts of all of them keep the threads busy, and none waits for the slowest of others.
        """
        if self._pool is None or len(calls) < 2:
            return [call() for call in calls]
        with ThreadPoolExecutor(len(calls)) as waiting:
            return [one.result() for one in [waiting.submit(call) for call in calls]]

    def both(self, one: Callable[[], Result], other: Callable[[], Part]) -> tuple[Result, Part]:
        """Return the results of two such calls."""
        if self._pool is None:
            return one(), other()
        with ThreadPoolExecutor(1) as waiting:
            first = waiting.submit(one)
            second = other()
            return first.result(), second


ALONE = Threads(1)
"""No other thread than the caller's."""
