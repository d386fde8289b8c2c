"""Deterministic parallel computation: fixed parts for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


class Threads:
    """Pool of at most ``count`` computing threads; a context manager.

    The parts must not depend on ``count``: sums of different parts round differently.
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
        """Return the result of each part, in order; a part must not call this."""
        return list(map(function, parts) if self._pool is None else self._pool.map(function, parts))

    def run_all(self, *calls: Callable[[], Result]) -> list[Result]:
        """Return the results of calls that mostly wait for their own ``map``, in order.

        The parts of all calls share the pool's threads, so no thread idles while a call finishes.
        """
        if self._pool is None or len(calls) < 2:
            return [call() for call in calls]
        with ThreadPoolExecutor(len(calls)) as waiting:
            return [future.result() for future in [waiting.submit(call) for call in calls]]

    def run_both(
        self, first_call: Callable[[], Result], second_call: Callable[[], Part]
    ) -> tuple[Result, Part]:
        """Return the results of two calls, as ``run_all`` does for calls of one type."""
        if self._pool is None:
            return first_call(), second_call()
        with ThreadPoolExecutor(1) as waiting:
            first = waiting.submit(first_call)
            second = second_call()
            return first.result(), second


SINGLE_THREAD = Threads(1)
"""Runs everything in the caller's thread."""
