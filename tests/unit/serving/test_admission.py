"""Admission control: capacity is granted once, refused at once, and released."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.errors import Overloaded
from topwork.serving.admission import BUDGET_SHARE, Admission


def an_image_a_second(images: int, _caller: str = "") -> float:
    """Return the expected seconds of ``images`` at one image per second."""
    return float(images)


def test_request_beyond_the_limit_is_refused_with_retry_after() -> None:
    """Overloaded has the number of queued images, the limit and the delay before a retry."""

    async def scenario() -> None:
        admission = Admission(4, an_image_a_second)
        await admission.acquire(3, budget=None, can_wait=False)
        with pytest.raises(
            Overloaded, match=r"3 images are queued, 2 more .* limit of 4"
        ) as caught:
            await admission.acquire(2, budget=None, can_wait=False)
        assert (caught.value.reason, caught.value.retry_after) == ("OVERLOADED", 2.0)
        await admission.acquire(1, budget=None, can_wait=False)
        assert admission.admitted == 4

    asyncio.run(scenario())


def test_bytes_have_a_separate_limit() -> None:
    """A few large images may exceed the limit of bytes; a request that can wait waits."""

    async def scenario() -> None:
        admission = Admission(100, an_image_a_second, max_bytes=1000)
        await admission.acquire(1, size=600, budget=None, can_wait=False)
        with pytest.raises(Overloaded, match=r"600 bytes of images are queued, 401 more .* 1000"):
            await admission.acquire(1, size=401, budget=None, can_wait=False)
        await admission.acquire(1, size=400, budget=None, can_wait=True)
        waiting = asyncio.create_task(admission.acquire(1, size=101, budget=None, can_wait=True))
        await asyncio.sleep(0)
        admission.release(1, size=600, can_wait=False)
        assert not waiting.done()  # requests that can wait have half of the limit
        admission.release(1, size=400, can_wait=True)
        await waiting
        admission.release(1, size=101, can_wait=True)
        await admission.acquire(1, size=5000, budget=None, can_wait=False)  # alone

    asyncio.run(scenario())


def test_request_that_would_miss_its_deadline_is_refused() -> None:
    """Images that may finish after the budget are refused, unless no other image is admitted."""

    async def scenario() -> None:
        admission = Admission(100, an_image_a_second)
        await admission.acquire(7, budget=3.5, can_wait=False)
        with pytest.raises(Overloaded, match=r"3 images would take 3\.000 s") as caught:
            await admission.acquire(3, budget=3.5, can_wait=False)
        assert caught.value.reason == "NO_TIME"
        assert caught.value.retry_after == pytest.approx(3.0 - BUDGET_SHARE * 3.5)
        await admission.acquire(3, budget=4.0, can_wait=False)

    asyncio.run(scenario())


def test_waiting_requests_are_admitted_in_order_of_arrival() -> None:
    """A large request is admitted before a small request that arrived later."""

    async def scenario() -> list[str]:
        admission = Admission(8, an_image_a_second)
        entered: list[str] = []

        async def come(name: str, images: int) -> None:
            await admission.acquire(images, budget=0.0, can_wait=True)
            entered.append(name)

        await come("first", 3)
        tasks = [asyncio.create_task(come(*request)) for request in (("large", 4), ("small", 1))]
        await asyncio.sleep(0)
        assert entered == ["first"]
        admission.release(3, can_wait=True)
        await asyncio.sleep(0)
        assert entered == ["first", "large"]
        admission.release(4, can_wait=True)
        await asyncio.gather(*tasks)
        return entered

    assert asyncio.run(scenario()) == ["first", "large", "small"]


def test_requests_that_can_wait_use_half_of_the_limit() -> None:
    """Half of the images stay available to requests that cannot wait."""

    async def scenario() -> None:
        admission = Admission(8, an_image_a_second)
        tasks = [
            asyncio.create_task(admission.acquire(2, budget=None, can_wait=True)) for _ in range(9)
        ]
        await asyncio.sleep(0)
        assert admission.admitted == 4
        await admission.acquire(4, budget=None, can_wait=False)
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())


def test_requests_that_can_wait_use_half_of_the_bytes() -> None:
    """Bytes count for requests that were admitted at once and for those that waited."""

    async def scenario() -> None:
        admission = Admission(100, an_image_a_second, max_bytes=1000)
        await admission.acquire(1, size=300, budget=None, can_wait=True)
        waiting = asyncio.create_task(admission.acquire(1, size=201, budget=None, can_wait=True))
        await asyncio.sleep(0)
        assert admission.admitted == 1
        admission.release(1, size=300, can_wait=True)
        await waiting
        late = asyncio.create_task(admission.acquire(1, size=300, budget=None, can_wait=True))
        await asyncio.sleep(0)
        assert admission.admitted == 1
        late.cancel()

    asyncio.run(scenario())


def test_request_cancelled_at_admission_releases_its_capacity() -> None:
    """A request cancelled at the moment of admission leaves the capacity to the next request."""

    async def scenario() -> None:
        admission = Admission(4, an_image_a_second)
        await admission.acquire(2, budget=None, can_wait=True)
        gone, following = (
            asyncio.create_task(admission.acquire(2, budget=None, can_wait=True)) for _ in "12"
        )
        await asyncio.sleep(0)
        admission.release(2, can_wait=True)
        gone.cancel()
        async with asyncio.timeout(10):
            await following
        assert (gone.cancelled(), admission.admitted) == (True, 2)

    asyncio.run(scenario())


@pytest.mark.slow
@settings(max_examples=300)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["come", "wait", "leave", "cancel", "turn"]), st.integers(1, 9)),
        max_size=60,
    )
)
def test_capacity_is_never_lost_nor_granted_twice(steps: list[tuple[str, int]]) -> None:
    """All capacity is free again after any sequence of requests, cancellations and releases."""

    async def scenario() -> None:
        admission = Admission(6, an_image_a_second)
        held: list[tuple[int, bool]] = []
        waiting: list[asyncio.Task[None]] = []

        async def come(images: int, *, can_wait: bool) -> None:
            await admission.acquire(images, budget=None, can_wait=can_wait)
            held.append((images, can_wait))

        def leave(number: int) -> None:
            images, can_wait = held.pop(number % len(held))
            admission.release(images, can_wait=can_wait)

        for step, number in steps:
            if step == "come":
                try:
                    await come(number, can_wait=False)
                except Overloaded:
                    assert admission.admitted + number > 6
            elif step == "wait":
                waiting.append(asyncio.create_task(come(number, can_wait=True)))
            elif step == "leave" and held:
                leave(number)
            elif step == "cancel" and waiting:
                waiting[number % len(waiting)].cancel()
            else:
                await asyncio.sleep(0)
            assert admission.admitted <= 9
        for _ in range(3 * len(waiting) + 3):
            await asyncio.sleep(0)
            while held:
                leave(0)
        assert all(task.done() for task in waiting), "a request waits forever"
        assert admission.admitted == admission._can_wait_admitted == 0

    asyncio.run(scenario())


def test_each_caller_can_have_its_share() -> None:
    """A caller that has taken all capacity alone does not keep others from theirs."""

    async def scenario() -> None:
        admission = Admission(12, an_image_a_second)
        await admission.acquire(12, budget=None, can_wait=False, caller="greedy")
        with pytest.raises(Overloaded):
            await admission.acquire(1, budget=None, can_wait=False, caller="greedy")
        await admission.acquire(6, budget=None, can_wait=False, caller="modest")
        with pytest.raises(Overloaded):
            await admission.acquire(1, budget=None, can_wait=False, caller="modest")
        await admission.acquire(4, budget=None, can_wait=False, caller="third")
        with pytest.raises(Overloaded):
            await admission.acquire(1, budget=None, can_wait=False, caller="third")
        with pytest.raises(Overloaded):  # twice the limit
            await admission.acquire(3, budget=None, can_wait=False, caller="fourth")
        admission.release(12, can_wait=False, caller="greedy")
        admission.release(6, can_wait=False, caller="modest")
        await admission.acquire(8, budget=None, can_wait=False, caller="third")
        assert admission.admitted == 12

    asyncio.run(scenario())
