"""The poller: however many wait, the database is asked once a look."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from topwork.changes.polling import Poller
from topwork.errors import NotFound


class Looks:
    """What a poller looks at; counts the looks."""

    def __init__(self) -> None:
        self.keys: list[list[str]] = []
        self.values: dict[str, int | Exception] = {"a": 1, "b": 2}
        self.failure: Exception | None = None

    async def look(self, keys: Collection[str]) -> Mapping[str, int | Exception]:
        """Return the values of the keys, or fail."""
        self.keys.append(sorted(keys))
        if self.failure is not None:
            raise self.failure
        return {key: self.values[key] for key in keys}


def test_all_who_wait_share_one_look() -> None:
    """Twenty who wait for two keys cost one look, which asks for each key once."""
    looks = Looks()

    async def scenario() -> list[int]:
        poller = Poller(looks.look, 0.01)
        return await asyncio.gather(*(poller.next("ab"[number % 2]) for number in range(20)))

    assert asyncio.run(scenario()) == [1, 2] * 10
    assert looks.keys == [["a", "b"]]


def test_nobody_waits_and_nothing_is_looked_at() -> None:
    """Once all have what they waited for, or have gone, the poller rests."""
    looks = Looks()

    async def scenario() -> None:
        poller = Poller(looks.look, 0.001)
        await poller.next("a")
        gone = asyncio.create_task(poller.next("b"))
        await asyncio.sleep(0)
        gone.cancel()
        before = len(looks.keys)
        await asyncio.sleep(0.05)
        assert len(looks.keys) <= before + 1
        assert await poller.next("b") == 2  # and begins again

    asyncio.run(scenario())


def test_an_error_of_one_key_is_its_own() -> None:
    """Who waits for a key that is gone gets its error, all others their values."""
    looks = Looks()
    looks.values["b"] = NotFound("gone", kind="operation", resource="b")

    async def scenario() -> None:
        poller = Poller(looks.look, 0.001)
        a, b = await asyncio.gather(poller.next("a"), poller.next("b"), return_exceptions=True)
        assert a == 1
        assert isinstance(b, NotFound)

    asyncio.run(scenario())


def test_a_look_that_fails_is_everybodys_error_once() -> None:
    """A database that is away ends those who wait; later ones are looked for anew."""
    looks = Looks()

    async def scenario() -> None:
        poller = Poller(looks.look, 0.001)
        looks.failure = OSError("away")
        both = await asyncio.gather(poller.next("a"), poller.next("b"), return_exceptions=True)
        assert all(one is looks.failure for one in both)
        looks.failure = None
        assert await poller.next("a") == 1

    asyncio.run(scenario())


def test_who_waits_ends_with_the_poller() -> None:
    """A poller that is closed leaves nobody waiting."""

    async def scenario() -> None:
        poller = Poller(Looks().look, 60.0)
        waiting = asyncio.create_task(poller.next("a"))
        await asyncio.sleep(0)
        await poller.aclose()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 5.0)

    asyncio.run(scenario())
