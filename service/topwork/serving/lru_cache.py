"""LRU cache bounded by bytes; concurrent misses share one load."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Key = tuple[str, int]
"""Model and revision."""


class LruCache(Generic[T]):
    """Cache by model and revision of at most ``max_weight`` bytes, the sum of ``weight_of(value)``.

    All state belongs to one event loop.
    """

    def __init__(self, max_weight: int, *, weight_of: Callable[[T], int]) -> None:
        self._max_weight = max_weight
        self._weight_of = weight_of
        self._weight = 0
        self._values: OrderedDict[Key, T] = OrderedDict()
        self._loads: dict[Key, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        """Return the number of cached values."""
        return len(self._values)

    async def get(self, key: Key, load: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the cached value, or the result of ``load``; raises what ``load`` raises.

        Concurrent callers wait for the same load, which continues if a caller is cancelled.
        """
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
            return value
        task = self._loads.get(key)
        if task is None:
            task = asyncio.create_task(load(), name=f"load {key}")
            self._loads[key] = task
            task.add_done_callback(partial(self._end, key))
        return await asyncio.shield(task)

    def put(self, key: Key, value: T) -> None:
        """Add a value and evict the least recently used values, but never this one."""
        assert key not in self._values, "the value is cached already; this is a bug"
        self._values[key] = value
        self._weight += self._weight_of(value)
        while self._weight > self._max_weight and len(self._values) > 1:
            self._weight -= self._weight_of(self._values.popitem(last=False)[1])

    def drop(self, model: str) -> None:
        """Remove all values of a model; results of loads in progress are not cached."""
        for key in [key for key in self._values if key[0] == model]:
            self._weight -= self._weight_of(self._values.pop(key))
        for key in [key for key in self._loads if key[0] == model]:
            del self._loads[key]

    def _end(self, key: Key, task: asyncio.Task[T]) -> None:
        if self._loads.get(key) is task:
            del self._loads[key]
            if not task.cancelled() and task.exception() is None:
                self.put(key, task.result())
