"""What was asked for lately stays, and is loaded once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from topwork.serving.lru_cache import LruCache


class Loads:
    """Counts loads; each returns its key's revision when the gate is open."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.gate = asyncio.Event()

    def of(self, revision: int) -> Callable[[], Coroutine[Any, Any, int]]:
        """Return what loads ``revision``."""

        async def load() -> int:
            self.started.append(revision)
            await self.gate.wait()
            return revision

        return load


def held(most: int) -> LruCache[int]:
    """Return one whose values weigh what they are."""
    return LruCache(most, weigh=lambda value: value)


def test_the_least_recently_asked_for_leave_first() -> None:
    """What passes the weight pushes out what was not asked for longest, until it fits."""

    async def scenario() -> list[int]:
        kept, loads = held(10), Loads()
        loads.gate.set()
        for revision in (3, 4, 2, 3, 5):  # 3 is asked for again; 4 must leave for 5, 2 need not
            await kept.get(("model", revision), loads.of(revision))
        for revision in (5, 3, 2):
            await kept.get(("model", revision), loads.of(revision))
        assert len(kept) == 3
        return loads.started

    assert asyncio.run(scenario()) == [3, 4, 2, 5]


def test_what_weighs_more_than_all_may_stays_alone() -> None:
    """One value is always held, however heavy."""

    async def scenario() -> tuple[int, list[int]]:
        kept, loads = held(10), Loads()
        loads.gate.set()
        for revision in (4, 99, 99):
            await kept.get(("model", revision), loads.of(revision))
        return len(kept), loads.started

    assert asyncio.run(scenario()) == (1, [4, 99])


def test_all_who_ask_wait_for_one_load() -> None:
    """Many who ask at once cause one load, and one of them giving up does not end it."""

    async def scenario() -> tuple[list[int], list[int]]:
        kept, loads = held(10), Loads()
        asking = [asyncio.create_task(kept.get(("model", 7), loads.of(7))) for _ in range(20)]
        await asyncio.sleep(0)
        asking.pop(0).cancel()
        loads.gate.set()
        found = await asyncio.gather(*asking)
        return found, loads.started

    assert asyncio.run(scenario()) == ([7] * 19, [7])


def test_nobody_waits_for_the_load_of_something_else() -> None:
    """While one value is being loaded, another is loaded and returned."""

    async def scenario() -> int:
        kept, slow, quick = held(10), Loads(), Loads()
        quick.gate.set()
        waiting = asyncio.create_task(kept.get(("model", 1), slow.of(1)))
        found = await kept.get(("other", 2), quick.of(2))
        assert not waiting.done()
        slow.gate.set()
        await waiting
        return found

    assert asyncio.run(scenario()) == 2


def test_a_failed_load_is_tried_again() -> None:
    """All who waited get the error; who asks later causes another load."""

    async def scenario() -> int:
        kept = held(10)
        tries = 0

        async def load() -> int:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0)
            raise OSError("away")

        asked = [kept.get(("model", 1), load) for _ in range(3)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, OSError) for error in errors)
        with pytest.raises(OSError, match="away"):
            await kept.get(("model", 1), load)
        assert len(kept) == 0
        return tries

    assert asyncio.run(scenario()) == 2


def test_what_was_dropped_while_it_was_loaded_does_not_come_back() -> None:
    """Who asked before gets it; who asks after causes a load of its own."""

    async def scenario() -> tuple[int, int, list[int]]:
        kept, old, new = held(10), Loads(), Loads()
        first = asyncio.create_task(kept.get(("model", 1), old.of(1)))
        await asyncio.sleep(0)
        kept.drop("model")
        second = asyncio.create_task(kept.get(("model", 1), new.of(2)))
        old.gate.set()
        found = await first
        assert len(kept) == 0
        new.gate.set()
        return found, await second, new.started

    assert asyncio.run(scenario()) == (1, 2, [2])


def test_dropping_gives_the_weight_back() -> None:
    """What a dropped model weighed is free for others; other models stay."""

    async def scenario() -> int:
        kept = held(10)
        kept.put(("model", 1), 6)
        kept.put(("other", 1), 3)
        kept.drop("model")
        kept.put(("third", 1), 7)
        return len(kept)

    assert asyncio.run(scenario()) == 2
