"""LRU cache bounded by weight; a value is loaded once for all who ask."""

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
    """Values by model and revision, of ``most`` bytes together, as ``weigh`` says of each.

    All state belongs to one event loop.
    """

    def __init__(self, most: int, *, weigh: Callable[[T], int]) -> None:
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._values: OrderedDict[Key, T] = OrderedDict()
        self._loads: dict[Key, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._values)

    async def get(self, key: Key, load: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return a value, by ``load`` if it is not here; raises what that raises.

        Who asks while it is loaded waits for the same load, which goes on when one gives up.
        """
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
            return found
        task = self._loads.get(key)
        if task is None:
            task = asyncio.create_task(load(), name=f"load {key}")
            self._loads[key] = task
            task.add_done_callback(partial(self._end, key))
        return await asyncio.shield(task)

    def put(self, key: Key, value: T) -> None:
        """Add a value; the least recently asked for leave, but never this one."""
        assert key not in self._values, "a revision is loaded once, or dropped before"
        self._values[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._most and len(self._values) > 1:
            self._weight -= self._weigh(self._values.popitem(last=False)[1])

    def drop(self, model: str) -> None:
        """Remove all of a model; what is being loaded is for those alone who asked already."""
        for key in [key for key in self._values if key[0] == model]:
            self._weight -= self._weigh(self._values.pop(key))
        for key in [key for key in self._loads if key[0] == model]:
            del self._loads[key]

    def _end(self, key: Key, task: asyncio.Task[T]) -> None:
        if self._loads.get(key) is task:
            del self._loads[key]
            if not task.cancelled() and task.exception() is None:
                self.put(key, task.result())
