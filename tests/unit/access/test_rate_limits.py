"""RateLimiter: calls per second, concurrent calls, concurrent images."""

from __future__ import annotations

import asyncio

import pytest
from support import virtual_time

from topwork.access.rate_limits import CallLimits, RateLimiter
from topwork.errors import Overloaded


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_call_above_rate_is_refused_with_retry_after() -> None:
    """After a burst of one second's calls the next is refused, with the time until it succeeds."""
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
    for _ in range(4):  # a longer pause allows no larger burst
        limiter.begin()
    with pytest.raises(Overloaded):
        limiter.begin()


def test_rate_below_one_per_second_admits_first_call() -> None:
    """The burst is at least one call."""
    clock = Clock()
    limiter = RateLimiter(CallLimits(calls_per_second=0.5), clock=clock)
    limiter.begin()
    with pytest.raises(Overloaded) as caught:
        limiter.begin()
    assert caught.value.retry_after == 2.0


def test_concurrent_calls_are_limited() -> None:
    """When a call ends another may begin."""
    limiter = RateLimiter(CallLimits(calls=2))
    limiter.begin()
    limiter.begin()
    with pytest.raises(Overloaded, match="the limit is 2") as caught:
        limiter.begin()
    assert caught.value.reason == "TOO_MANY_CALLS"
    limiter.end()
    limiter.begin()


def test_concurrent_images_are_limited() -> None:
    """Refused images do not count; a request above the limit is admitted alone."""
    limiter = RateLimiter(CallLimits(images=10))
    limiter.take(7)
    with pytest.raises(Overloaded) as caught:
        limiter.take(5)
    assert caught.value.reason == "TOO_MANY_IMAGES_AT_A_TIME"
    limiter.take(3)
    limiter.give(10)
    limiter.take(11)


def test_wait_returns_once_images_are_given_back() -> None:
    """A stream's message waits for capacity instead of being refused."""

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


def test_change_wakes_waiting_message() -> None:
    """The bucket refills at the old rate until the change and at the new rate afterwards."""

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


def test_wait_limits_rate_of_stream_messages() -> None:
    """Each message of a stream counts as a call."""

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


def test_calls_before_a_rate_limit_do_not_count() -> None:
    """A principal that gets its first rate limit begins with a full burst."""
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
def test_limit_must_be_above_zero(limits: dict[str, int]) -> None:
    """Roles, not limits, deny a principal all calls."""
    with pytest.raises(ValueError, match="must be above 0"):
        CallLimits(**limits)
