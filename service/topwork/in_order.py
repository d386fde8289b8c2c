"""Work on items in threads, with results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    work: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int, waits: bool = True
) -> Generator[tuple[T, R], None, None]:
    """Yield each item with the result of ``work``, in order, with at most ``ahead`` in flight.

    ``items`` is read in the caller's thread. Raises what ``work`` and ``items`` raise. At the end
    no other work is begun; if it ``waits``, work in progress is finished.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= ahead:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        for oldest, future in waiting:
            yield oldest, future.result()
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)
