"""Slots: no caller takes all, and no slot is lost."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from topwork.access.slots import Slots
from topwork.errors import Overloaded


def slots(most: int) -> Slots:
    """Return ``most`` slots for streams."""
    return Slots(most, calls="streams", reason="TOO_MANY_STREAMS", retry_after=1.5)


def fill(shared: Slots, caller: str) -> int:
    """Take slots until the caller may take no more, and return their number."""
    count = 0
    while shared.may_take(caller):
        shared.take(caller)
        count += 1
    with pytest.raises(Overloaded):
        shared.take(caller)
    return count


@pytest.mark.parametrize(
    ("most", "shares"),
    [
        (64, [32, 16, 8, 4, 2, 1, 1, 0]),
        (16, [8, 4, 2, 1, 1, 0]),
        (3, [2, 1, 0]),
        (1, [1, 0]),
        (0, [0]),
    ],
)
def test_each_caller_gets_half_of_the_free_slots(most: int, shares: list[int]) -> None:
    """A greedy caller leaves slots for the next, until all slots are taken."""
    shared = slots(most)
    assert [fill(shared, f"caller {number}") for number in range(len(shares))] == shares


def test_returned_slots_can_be_taken_again() -> None:
    """After all slots are given back, shares are as at first and no caller is stored."""
    shared = slots(8)
    for _ in range(3):
        for caller in ("a", "b"):
            for _ in range(fill(shared, caller)):
                shared.give(caller)
    assert not shared._held


def test_overloaded_has_counts_and_retry_after() -> None:
    """The message has the open slots, the caller's slots and the limit."""
    shared = slots(4)
    with (
        shared.hold("a"),
        shared.hold("b"),
        shared.hold("a"),
        pytest.raises(
            Overloaded, match="3 streams are open, 2 of them yours; the limit is 4"
        ) as caught,
        shared.hold("a"),
    ):
        pass
    assert (caught.value.reason, caught.value.retry_after) == ("TOO_MANY_STREAMS", 1.5)
    assert shared.held("a") == 0


def test_counts_are_exact_after_random_takes_and_gives() -> None:
    """In any order of calls, no slot is lost and none is given twice."""
    chance = random.Random(7)
    shared = slots(16)
    held: Counter[str] = Counter()
    for _ in range(5000):
        caller = chance.choice("abcde")
        if held[caller] and chance.random() < 0.4:
            shared.give(caller)
            held[caller] -= 1
        else:
            allowed = held[caller] < 16 - held.total()
            assert shared.may_take(caller) == allowed
            if allowed:
                shared.take(caller)
                held[caller] += 1
        assert held.total() <= 16
        assert shared.held(caller) == held[caller]
