"""What one principal may use: no more, and no less."""

from __future__ import annotations

import asyncio

import pytest
from support import virtual_time

from topwork.access.rate_limits import CallLimits, RateLimiter
from topwork.errors import Overloaded


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return it."""
        return self.now


def test_calls_come_at_their_rate() -> None:
    """After as many as a second allows the next is refused, with the time until it is not."""
    clock = Clock()
    limiter = RateLimiter(CallLimits(calls_per_second=4), clock=clock)
    for _ in range(4):
        limiter.begin()
    with pytest.raises(Overloaded) as caught:
        limiter.begin()
    assert (caught.value.reason, caught.value.retry_after) == ("RATE_LIMIT", 0.25)
    clock.now += 0.25
    limiter.begin()
    clock.now += 1000
    for _ in range(4):  # a pause is worth no more than a second
        limiter.begin()
    with pytest.raises(Overloaded):
        limiter.begin()


def test_a_slow_rate_lets_the_first_call_in() -> None:
    """Less than one a second is a rate, too."""
    clock = Clock()
    limiter = RateLimiter(CallLimits(calls_per_second=0.5), clock=clock)
    limiter.begin()
    with pytest.raises(Overloaded) as caught:
        limiter.begin()
    assert caught.value.retry_after == 2.0


def test_calls_at_a_time() -> None:
    """A call that ends makes room for another."""
    limiter = RateLimiter(CallLimits(calls=2))
    limiter.begin()
    limiter.begin()
    with pytest.raises(Overloaded, match="the limit is 2") as caught:
        limiter.begin()
    assert caught.value.reason == "TOO_MANY_CALLS"
    limiter.end()
    limiter.begin()


def test_images_at_a_time() -> None:
    """What is refused takes no room, and what is larger than the limit is let in alone."""
    limiter = RateLimiter(CallLimits(images=10))
    limiter.take(8)
    with pytest.raises(Overloaded) as caught:
        limiter.take(3)
    assert caught.value.reason == "TOO_MANY_IMAGES_AT_A_TIME"
    limiter.take(2)
    limiter.give(10)
    limiter.take(11)


def test_a_stream_waits_for_room_instead() -> None:
    """Its next message is taken as soon as the room is given back."""

    async def scenario() -> float:
        limiter = RateLimiter(CallLimits(images=4))
        await limiter.wait(4)
        waiting = asyncio.create_task(limiter.wait(1))
        await asyncio.sleep(1.01)
        assert not waiting.done()
        limiter.give(4)
        await waiting
        return asyncio.get_running_loop().time()

    assert virtual_time.run(scenario()) == pytest.approx(1.01)


def test_other_limits_count_at_once() -> None:
    """A rate fills what is left by itself from then on; who waits looks again."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(CallLimits(calls_per_second=0.1), clock=loop.time)
        await limiter.wait(1)
        await asyncio.sleep(5.0)  # half a call
        waiting = asyncio.create_task(limiter.wait(1))
        await asyncio.sleep(0)
        limiter.change(CallLimits(calls_per_second=0.2))
        await waiting
        return loop.time()

    assert virtual_time.run(scenario()) == pytest.approx(5.0 + 0.5 / 0.2)


def test_a_stream_keeps_to_the_rate() -> None:
    """Messages of a stream count as calls."""

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(CallLimits(calls_per_second=2), clock=loop.time)
        times = []
        for _ in range(5):
            await limiter.wait(1)
            limiter.give(1)
            times.append(loop.time())
        return times

    assert virtual_time.run(scenario()) == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.5])


def test_calls_without_a_limit_are_not_held_against_a_later_one() -> None:
    """Who had no rate begins with the whole of it."""
    clock = Clock()
    limiter = RateLimiter(CallLimits(), clock=clock)
    for _ in range(100):
        limiter.begin()
    clock.now += 1000
    limiter.change(CallLimits(calls_per_second=3))
    for _ in range(3):
        limiter.begin()
    with pytest.raises(Overloaded):
        limiter.begin()


@pytest.mark.parametrize("limits", [{"calls": 0}, {"images": -1}, {"calls_per_second": 0.0}])
def test_a_limit_is_above_zero(limits: dict[str, int]) -> None:
    """Zero would be a principal that may do nothing: leave its roles out instead."""
    with pytest.raises(ValueError, match="must be above 0"):
        CallLimits(**limits)
