"""Room is given once, refused at once, and comes back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.errors import Overloaded
from topwork.serving.admission import SURE, Admission


def an_image_a_second(images: int) -> float:
    """Expect an image to take a second."""
    return float(images)


def test_what_has_no_room_is_refused_with_the_time_to_wait() -> None:
    """Beyond the limit: Overloaded, with the numbers and when a retry makes sense."""

    async def scenario() -> None:
        admission = Admission(4, an_image_a_second)
        await admission.enter(3, budget=None, patient=False)
        with pytest.raises(
            Overloaded, match=r"3 images are queued, 2 more .* limit of 4"
        ) as caught:
            await admission.enter(2, budget=None, patient=False)
        assert (caught.value.reason, caught.value.retry_after) == ("OVERLOADED", 2.0)
        await admission.enter(1, budget=None, patient=False)
        assert admission.inside == 4

    asyncio.run(scenario())


def test_bytes_have_a_limit_of_their_own() -> None:
    """Few images may be too long together; who is patient waits until there is room for theirs."""

    async def scenario() -> None:
        admission = Admission(100, an_image_a_second, most_bytes=1000)
        await admission.enter(1, size=600, budget=None, patient=False)
        with pytest.raises(Overloaded, match=r"600 bytes of images are queued, 401 more .* 1000"):
            await admission.enter(1, size=401, budget=None, patient=False)
        await admission.enter(1, size=400, budget=None, patient=True)
        waiting = asyncio.create_task(admission.enter(1, size=101, budget=None, patient=True))
        await asyncio.sleep(0)
        admission.leave(1, size=600, patient=False)
        assert not waiting.done()  # half of the limit is for the patient
        admission.leave(1, size=400, patient=True)
        await waiting
        admission.leave(1, size=101, patient=True)
        await admission.enter(1, size=5000, budget=None, patient=False)  # alone

    asyncio.run(scenario())


def test_what_has_no_time_is_refused() -> None:
    """Images that might end after their budget are refused, unless nothing else is inside."""

    async def scenario() -> None:
        admission = Admission(100, an_image_a_second)
        await admission.enter(7, budget=3.5, patient=False)
        with pytest.raises(Overloaded, match=r"3 images would end in 3\.000 s") as caught:
            await admission.enter(3, budget=3.5, patient=False)
        assert caught.value.reason == "NO_TIME"
        assert caught.value.retry_after == pytest.approx(3.0 - SURE * 3.5)
        await admission.enter(3, budget=4.0, patient=False)

    asyncio.run(scenario())


def test_the_patient_wait_in_order() -> None:
    """Who is patient gets room in order of coming, a large request before a small later one."""

    async def scenario() -> list[str]:
        admission = Admission(8, an_image_a_second)
        entered: list[str] = []

        async def come(name: str, images: int) -> None:
            await admission.enter(images, budget=0.0, patient=True)
            entered.append(name)

        await come("first", 3)
        tasks = [asyncio.create_task(come(*one)) for one in (("large", 4), ("small", 1))]
        await asyncio.sleep(0)
        assert entered == ["first"]
        admission.leave(3, patient=True)
        await asyncio.sleep(0)
        assert entered == ["first", "large"]
        admission.leave(4, patient=True)
        await asyncio.gather(*tasks)
        return entered

    assert asyncio.run(scenario()) == ["first", "large", "small"]


def test_the_patient_leave_half_to_others() -> None:
    """However much the patient want, others find half of the limit."""

    async def scenario() -> None:
        admission = Admission(8, an_image_a_second)
        tasks = [
            asyncio.create_task(admission.enter(2, budget=None, patient=True)) for _ in range(9)
        ]
        await asyncio.sleep(0)
        assert admission.inside == 4
        await admission.enter(4, budget=None, patient=False)
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())


def test_the_patient_leave_half_of_the_bytes_to_others() -> None:
    """Those that found room at once count as those that waited for it."""

    async def scenario() -> None:
        admission = Admission(100, an_image_a_second, most_bytes=1000)
        await admission.enter(1, size=300, budget=None, patient=True)
        waiting = asyncio.create_task(admission.enter(1, size=201, budget=None, patient=True))
        await asyncio.sleep(0)
        assert admission.inside == 1
        admission.leave(1, size=300, patient=True)
        await waiting
        late = asyncio.create_task(admission.enter(1, size=300, budget=None, patient=True))
        await asyncio.sleep(0)
        assert admission.inside == 1
        late.cancel()

    asyncio.run(scenario())


def test_room_for_who_has_gone_is_given_back() -> None:
    """A call that is cancelled in the moment in which it gets room leaves it to the next one."""

    async def scenario() -> None:
        admission = Admission(4, an_image_a_second)
        await admission.enter(2, budget=None, patient=True)
        gone, following = (
            asyncio.create_task(admission.enter(2, budget=None, patient=True)) for _ in "12"
        )
        await asyncio.sleep(0)
        admission.leave(2, patient=True)
        gone.cancel()
        async with asyncio.timeout(10):
            await following
        assert (gone.cancelled(), admission.inside) == (True, 2)

    asyncio.run(scenario())


@settings(max_examples=300)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["come", "wait", "leave", "cancel", "turn"]), st.integers(1, 9)),
        max_size=60,
    )
)
def test_room_is_never_lost_nor_given_twice(steps: list[tuple[str, int]]) -> None:
    """After any coming, waiting, giving up and leaving, as much room is there as at first."""

    async def scenario() -> None:
        admission = Admission(6, an_image_a_second)
        held: list[tuple[int, bool]] = []
        waiting: list[asyncio.Task[None]] = []

        async def come(images: int, *, patient: bool) -> None:
            await admission.enter(images, budget=None, patient=patient)
            held.append((images, patient))

        def leave(number: int) -> None:
            images, patient = held.pop(number % len(held))
            admission.leave(images, patient=patient)

        for step, number in steps:
            if step == "come":
                try:
                    await come(number, patient=False)
                except Overloaded:
                    assert admission.inside + number > 6
            elif step == "wait":
                waiting.append(asyncio.create_task(come(number, patient=True)))
            elif step == "leave" and held:
                leave(number)
            elif step == "cancel" and waiting:
                waiting[number % len(waiting)].cancel()
            else:
                await asyncio.sleep(0)
            assert admission.inside <= 9
        for _ in range(3 * len(waiting) + 3):
            await asyncio.sleep(0)
            while held:
                leave(0)
        assert all(task.done() for task in waiting), "somebody waits for ever"
        assert admission.inside == admission._patient_inside == 0

    asyncio.run(scenario())
