"""Poller: one fetch for all waiting callers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from topwork.changes.polling import Poller
from topwork.errors import NotFound


class Source:
    """Values for a poller; records the keys of each fetch."""

    def __init__(self) -> None:
        self.keys: list[list[str]] = []
        self.values: dict[str, int | Exception] = {"a": 1, "b": 2}
        self.failure: Exception | None = None

    async def fetch(self, keys: Collection[str]) -> Mapping[str, int | Exception]:
        """Return the values of the keys, or raise ``failure``."""
        self.keys.append(sorted(keys))
        if self.failure is not None:
            raise self.failure
        return {key: self.values[key] for key in keys}


def test_waiting_callers_share_one_fetch() -> None:
    """Twenty callers that wait for two keys cost one fetch, with each key once."""
    source = Source()

    async def scenario() -> list[int]:
        poller = Poller(source.fetch, 0.01)
        return await asyncio.gather(*(poller.next("ab"[number % 2]) for number in range(20)))

    assert asyncio.run(scenario()) == [1, 2] * 10
    assert source.keys == [["a", "b"]]


def test_poller_stops_without_waiting_callers() -> None:
    """Once all callers have their values or are cancelled, the poller fetches nothing."""
    source = Source()

    async def scenario() -> None:
        poller = Poller(source.fetch, 0.001)
        await poller.next("a")
        cancelled = asyncio.create_task(poller.next("b"))
        await asyncio.sleep(0)
        cancelled.cancel()
        before = len(source.keys)
        await asyncio.sleep(0.05)
        assert len(source.keys) <= before + 1
        assert await poller.next("b") == 2  # it starts again

    asyncio.run(scenario())


def test_error_of_a_key_is_raised_in_its_callers_only() -> None:
    """Callers of other keys get their values."""
    source = Source()
    source.values["b"] = NotFound("gone", kind="operation", resource="b")

    async def scenario() -> None:
        poller = Poller(source.fetch, 0.001)
        a, b = await asyncio.gather(poller.next("a"), poller.next("b"), return_exceptions=True)
        assert a == 1
        assert isinstance(b, NotFound)

    asyncio.run(scenario())


def test_failed_fetch_is_raised_in_all_waiting_callers() -> None:
    """Later callers cause a new fetch."""
    source = Source()

    async def scenario() -> None:
        poller = Poller(source.fetch, 0.001)
        source.failure = OSError("away")
        both = await asyncio.gather(poller.next("a"), poller.next("b"), return_exceptions=True)
        assert all(error is source.failure for error in both)
        source.failure = None
        assert await poller.next("a") == 1

    asyncio.run(scenario())


def test_aclose_cancels_waiting_callers() -> None:
    """A caller of a closed poller gets CancelledError."""

    async def scenario() -> None:
        poller = Poller(Source().fetch, 60.0)
        waiting = asyncio.create_task(poller.next("a"))
        await asyncio.sleep(0)
        await poller.aclose()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 5.0)

    asyncio.run(scenario())
