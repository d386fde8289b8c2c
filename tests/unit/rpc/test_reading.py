"""Rate limit of reading long messages; no message is lost."""

from __future__ import annotations

import asyncio

import pytest
from support import virtual_time

from topwork.rpc.reading import LONG_SECONDS, PAUSE, Reading

LONG = 0.1
"""Seconds that it takes to copy a long message."""


class FakeReader:
    """Messages that have all arrived, and the times when they were copy_times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.copied: list[tuple[str, float]] = []
        self.reading = Reading(clock=self.clock)
        self.arrived = asyncio.Event()

    def clock(self) -> float:
        """Return the time, which goes on while a message is copy_times."""
        return asyncio.get_running_loop().time() + self.now

    async def read(self, name: str, seconds: float) -> str:
        """Wait for a message and copy it, as gRPC does."""
        await self.arrived.wait()
        self.copied.append((name, round(self.clock(), 3)))
        self.now += seconds
        return name

    def take(self, name: str, seconds: float, caller: str = "a") -> asyncio.Task[str]:
        """Take a message, in a task."""

        async def taken() -> str:
            return await self.reading.take(self.read(name, seconds), caller)

        return asyncio.create_task(taken())


def copy_times(*messages: tuple[str, float, str]) -> list[tuple[str, float]]:
    """Return the times when messages are copy_times: name, seconds, caller."""

    async def scenario() -> list[tuple[str, float]]:
        wire = FakeReader()
        tasks = [wire.take(*message) for message in messages]
        await asyncio.sleep(0)
        wire.arrived.set()
        assert await asyncio.gather(*tasks) == [name for name, _, _ in messages]
        return wire.copied

    return virtual_time.run(scenario())


def test_long_messages_of_a_caller_are_read_one_by_one() -> None:
    """After each message there is a pause of twice its length for other work."""
    times = copy_times(*((name, LONG, "a") for name in "123"))
    assert times == [
        ("1", 0.0),
        ("2", pytest.approx(LONG * (1 + PAUSE))),
        ("3", pytest.approx(2 * LONG * (1 + PAUSE))),
    ]


def test_short_messages_are_read_at_once() -> None:
    """Short messages do not wait."""
    times = copy_times(*((name, LONG_SECONDS / 2, "a") for name in "123"))
    assert [when for _, when in times] == pytest.approx([0.0, 0.0025, 0.005], abs=0.001)


def test_long_messages_delay_only_their_caller() -> None:
    """A caller's long messages delay only its own messages."""
    times = dict(copy_times(("1", LONG, "a"), ("2", LONG, "a"), ("3", 0.0, "b")))
    assert times["3"] == pytest.approx(LONG)
    assert times["2"] == pytest.approx(LONG * (1 + PAUSE))


def test_arrived_message_of_cancelled_call_is_read() -> None:
    """GRPC frees a message only when it is read, so it is read although its call was cancelled."""

    async def scenario() -> list[str]:
        wire = FakeReader()
        first, second = wire.take("1", LONG), wire.take("2", LONG)
        await asyncio.sleep(0)
        wire.arrived.set()
        await first
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        return [name for name, _ in wire.copied]

    assert virtual_time.run(scenario()) == ["1", "2"]


def test_cancelled_call_without_message_ends_at_once() -> None:
    """A call that is cancelled before its message arrives ends at once."""

    async def scenario() -> list[tuple[str, float]]:
        wire = FakeReader()
        task = wire.take("1", LONG)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return wire.copied

    assert virtual_time.run(scenario()) == []


def test_errors_of_reading_are_raised() -> None:
    """GRPC's errors reach the caller, whether they come before or after the wait."""

    async def broken(waits: bool) -> str:
        if waits:
            await asyncio.sleep(1.0)
        raise ArithmeticError

    async def scenario() -> None:
        for waits in (True, False):
            with pytest.raises(ArithmeticError):
                await Reading().take(broken(waits), "a")

    virtual_time.run(scenario())


def test_callers_are_forgotten_after_their_turn() -> None:
    """Only callers whose turn is yet to come are remembered."""

    async def scenario() -> Reading:
        wire = FakeReader()
        wire.arrived.set()
        for number in range(10):
            await wire.take("", LONG, f"caller {number}")
            await asyncio.sleep(1.0)
        return wire.reading

    assert len(virtual_time.run(scenario())._next) == 1
