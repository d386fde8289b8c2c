"""No caller takes all slots, and none is lost."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from topwork.access.slots import Slots
from topwork.errors import Overloaded


def slots(most: int) -> Slots:
    """Return slots."""
    return Slots(most, calls="streams", reason="TOO_MANY_STREAMS", retry_after=1.5)


def fill(shared: Slots, caller: str) -> int:
    """Let a caller take all that it gets, and return how many these are."""
    count = 0
    while shared.has_room(caller):
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
def test_each_caller_gets_half_of_what_the_others_left(most: int, shares: list[int]) -> None:
    """However much each wants, there is something for the next one, until nothing is left."""
    shared = slots(most)
    assert [fill(shared, f"caller {number}") for number in range(len(shares))] == shares


def test_what_is_given_back_can_be_had_again() -> None:
    """When all have gone a caller gets as many as at first, and nothing is remembered of them."""
    shared = slots(8)
    for _ in range(3):
        for caller in ("a", "b"):
            for _ in range(fill(shared, caller)):
                shared.give(caller)
    assert not shared._held


def test_a_refusal_has_the_numbers() -> None:
    """How many are open, how many of them are the caller's, the limit, and when to come again."""
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


def test_no_slot_is_lost_nor_given_twice() -> None:
    """After any coming and going the counts are those of the slots that are held."""
    chance = random.Random(7)
    shared = slots(16)
    held: Counter[str] = Counter()
    for _ in range(5000):
        caller = chance.choice("abcde")
        if held[caller] and chance.random() < 0.4:
            shared.give(caller)
            held[caller] -= 1
        else:
            room = held[caller] < 16 - held.total()
            assert shared.has_room(caller) == room
            if room:
                shared.take(caller)
                held[caller] += 1
        assert held.total() <= 16
        assert shared.held(caller) == held[caller]
