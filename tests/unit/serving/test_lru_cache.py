"""LRU cache: eviction by weight, shared loads, and dropped models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from topwork.serving.lru_cache import LruCache


class Loads:
    """Counter of loads; each returns its key's revision when the gate is open."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.gate = asyncio.Event()

    def of(self, revision: int) -> Callable[[], Coroutine[Any, Any, int]]:
        """Return a function that loads ``revision``."""

        async def load() -> int:
            self.started.append(revision)
            await self.gate.wait()
            return revision

        return load


def new_cache(max_weight: int) -> LruCache[int]:
    """Return a cache in which the weight of a value is the value."""
    return LruCache(max_weight, weight_of=lambda value: value)


def test_least_recently_used_values_are_evicted_first() -> None:
    """A value that exceeds the limit evicts the least recently used values until it fits."""

    async def scenario() -> list[int]:
        cache, loads = new_cache(10), Loads()
        loads.gate.set()
        for revision in (3, 4, 2, 3, 5):  # 3 is used again; 5 evicts 4 but not 2
            await cache.get(("model", revision), loads.of(revision))
        for revision in (5, 3, 2):
            await cache.get(("model", revision), loads.of(revision))
        assert len(cache) == 3
        return loads.started

    assert asyncio.run(scenario()) == [3, 4, 2, 5]


def test_value_heavier_than_the_limit_is_cached_alone() -> None:
    """One value is always cached, whatever its weight."""

    async def scenario() -> tuple[int, list[int]]:
        cache, loads = new_cache(10), Loads()
        loads.gate.set()
        for revision in (4, 99, 99):
            await cache.get(("model", revision), loads.of(revision))
        return len(cache), loads.started

    assert asyncio.run(scenario()) == (1, [4, 99])


def test_concurrent_misses_share_one_load() -> None:
    """Concurrent callers cause one load, which continues if a caller is cancelled."""

    async def scenario() -> tuple[list[int], list[int]]:
        cache, loads = new_cache(10), Loads()
        asking = [asyncio.create_task(cache.get(("model", 7), loads.of(7))) for _ in range(20)]
        await asyncio.sleep(0)
        asking.pop(0).cancel()
        loads.gate.set()
        found = await asyncio.gather(*asking)
        return found, loads.started

    assert asyncio.run(scenario()) == ([7] * 19, [7])


def test_loads_of_different_keys_are_concurrent() -> None:
    """A value is loaded and returned while another value is still loading."""

    async def scenario() -> int:
        cache, slow, quick = new_cache(10), Loads(), Loads()
        quick.gate.set()
        waiting = asyncio.create_task(cache.get(("model", 1), slow.of(1)))
        found = await cache.get(("other", 2), quick.of(2))
        assert not waiting.done()
        slow.gate.set()
        await waiting
        return found

    assert asyncio.run(scenario()) == 2


def test_failed_load_is_not_cached() -> None:
    """All waiting callers get the error; a later call causes another load."""

    async def scenario() -> int:
        cache = new_cache(10)
        tries = 0

        async def load() -> int:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0)
            raise OSError("away")

        asked = [cache.get(("model", 1), load) for _ in range(3)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, OSError) for error in errors)
        with pytest.raises(OSError, match="away"):
            await cache.get(("model", 1), load)
        assert len(cache) == 0
        return tries

    assert asyncio.run(scenario()) == 2


def test_value_dropped_during_its_load_is_not_cached() -> None:
    """Earlier callers get the value; later callers cause another load."""

    async def scenario() -> tuple[int, int, list[int]]:
        cache, old, new = new_cache(10), Loads(), Loads()
        first = asyncio.create_task(cache.get(("model", 1), old.of(1)))
        await asyncio.sleep(0)
        cache.drop("model")
        second = asyncio.create_task(cache.get(("model", 1), new.of(2)))
        old.gate.set()
        found = await first
        assert len(cache) == 0
        new.gate.set()
        return found, await second, new.started

    assert asyncio.run(scenario()) == (1, 2, [2])


def test_drop_frees_the_weight() -> None:
    """The weight of a dropped model is available again; other models stay."""

    async def scenario() -> int:
        cache = new_cache(10)
        cache.put(("model", 1), 6)
        cache.put(("other", 1), 3)
        cache.drop("model")
        cache.put(("third", 1), 7)
        return len(cache)

    assert asyncio.run(scenario()) == 2
