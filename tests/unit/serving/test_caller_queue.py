"""Fair queue of callers: many calls of one caller do not delay the others."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from topwork.serving.caller_queue import CallerQueue, CallTicket
from topwork.serving.fair_queue import FairQueue, Flow


def push(
    queue: CallerQueue[str], work: str, images: int, *, caller: str, deadline: float = 9.0
) -> CallTicket[str]:
    """Add a call with a flow of its own."""
    return queue.push(work, images, deadline=deadline, flow=Flow(), caller=caller)


def drain(queue: CallerQueue[str]) -> str:
    """Return the owners of all images in the order of service."""
    found = []
    while (image := queue.pop()) is not None:
        found.append(image[0])
    return "".join(found)


def test_many_calls_of_a_caller_have_no_more_turns_than_one() -> None:
    """600 calls of one caller and one call of another alternate, image by image."""
    queue: CallerQueue[str] = CallerQueue()
    for _ in range(600):
        push(queue, "g", 1, caller="greedy")
    push(queue, "m", 8, caller="modest")
    assert drain(queue)[:17].count("m") == 8


def test_calls_of_a_caller_take_turns() -> None:
    """Within a caller's turns a small call does not wait behind a large one."""
    queue: CallerQueue[str] = CallerQueue()
    push(queue, "a", 6, caller="x")
    push(queue, "b", 2, caller="x")
    push(queue, "c", 4, caller="y")
    assert drain(queue) == "acbcacbcaaaa"


def test_earliest_deadline_of_a_round_is_first() -> None:
    """A call with an earlier deadline brings its caller forward within the round."""
    queue: CallerQueue[str] = CallerQueue()
    push(queue, "a", 1, caller="x", deadline=3.0)
    push(queue, "b", 1, caller="y", deadline=2.0)
    push(queue, "c", 1, caller="x", deadline=1.0)
    assert drain(queue) == "cba"


def test_new_caller_is_not_delayed_by_earlier_turns() -> None:
    """A caller that comes after 100 images of another one has the next turn but one."""
    queue: CallerQueue[str] = CallerQueue()
    push(queue, "a", 200, caller="x")
    for _ in range(100):
        queue.pop()
    push(queue, "b", 1, caller="y")
    assert "b" in drain(queue)[:2]


def test_caller_is_not_starved_by_new_callers() -> None:
    """If a new caller replaces each one that was served, an old one has every fourth turn."""
    queue: CallerQueue[str] = CallerQueue()
    push(queue, "o", 20, caller="old", deadline=9.0)
    for number in range(3):
        push(queue, "n", 1, caller=f"first {number}", deadline=-1.0)
    served = []
    for number in range(100):
        image = queue.pop()
        assert image is not None
        served.append(image[0])
        if image[0] == "n":
            push(queue, "n", 1, caller=f"new {number}", deadline=-1.0)
    assert served.count("o") == 20


def test_long_lived_flow_is_not_behind_new_calls() -> None:
    """A stream that has sent many images has its turns beside the calls of its caller."""
    queue: CallerQueue[str] = CallerQueue()
    stream = Flow()
    for _ in range(1000):
        queue.push("s", 1, deadline=9.0, flow=stream, caller="x")
        queue.pop()
    for _ in range(3):
        push(queue, "c", 50, caller="x")
    queue.push("s", 1, deadline=9.0, flow=stream, caller="x")
    assert "s" in drain(queue)[:4]


def test_removals_free_memory() -> None:
    """The heap stays small after many removals while another call waits."""
    queue: CallerQueue[str] = CallerQueue()
    push(queue, "first", 1, caller="x", deadline=0.0)
    for number in range(1000):
        queue.remove(push(queue, "gone", 4, caller=f"{number}"))
        queue.remove(push(queue, "gone", 4, caller="x", deadline=-float(number)))
    assert len(queue._heap) < 50
    assert len(queue._callers) == 1
    assert drain(queue) == "first"


def test_new_deadlines_free_memory() -> None:
    """The heap is bounded by the number of callers, though each earlier deadline adds an entry."""
    queue: CallerQueue[str] = CallerQueue()
    for caller in range(12):
        for deadline in range(100):
            push(queue, "a", 1, caller=f"{caller}", deadline=-float(deadline))
    assert len(queue._heap) <= 2 * 12 + 16


calls = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=8)


@given(calls=calls)
def test_one_caller_has_the_order_of_a_fair_queue(calls: list[tuple[int, int]]) -> None:
    """With one caller, the order is that of its calls."""
    outer: CallerQueue[int] = CallerQueue()
    inner: FairQueue[int] = FairQueue()
    for number, (images, deadline) in enumerate(calls):
        outer.push(number, images, deadline=deadline, flow=Flow(), caller="x")
        inner.push(number, images, deadline=deadline, flow=Flow())
    while (image := inner.pop()) is not None:
        assert outer.pop() == image
    assert outer.pop() is None


@given(
    waiting=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), max_size=8),
    images=st.integers(1, 6),
    caller=st.integers(0, 3),
    served=st.integers(0, 10),
)
def test_no_more_images_precede_a_call_than_ahead(
    waiting: list[tuple[int, int]], images: int, caller: int, served: int
) -> None:
    """The bound holds for any calls that wait, with deadlines that are earlier."""
    queue: CallerQueue[str] = CallerQueue()
    for count, owner in waiting:
        push(queue, "w", count, caller=str(owner), deadline=0.0)
    for _ in range(served):
        queue.pop()
    ahead = queue.ahead(images, str(caller))
    push(queue, "n", images, caller=str(caller))
    order = drain(queue)
    assert order.rindex("n") + 1 - images <= ahead + len({owner for _, owner in waiting})


class AnyOrder(RuleBasedStateMachine):
    """State machine: calls are added, removed and served in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: CallerQueue[int] = CallerQueue()
        self.flows = [[Flow() for _ in range(2)] for _ in range(3)]
        self.tickets: list[CallTicket[int]] = []
        self.left: dict[int, list[int]] = {}
        self.caller_of: list[int] = []
        self.served: Counter[int] = Counter()
        """Images served of each caller since any caller began or ended to wait."""

    def waiting(self) -> set[int]:
        """Return the callers with waiting images."""
        return {self.caller_of[number] for number, images in self.left.items() if images}

    @rule(
        images=st.integers(1, 6),
        deadline=st.integers(0, 3),
        flow=st.none() | st.integers(0, 1),
        caller=st.integers(0, 2),
    )
    def push(self, images: int, deadline: int, flow: int | None, caller: int) -> None:
        """Add a call, with its own or a shared flow."""
        if caller not in self.waiting():
            self.served.clear()
        number = len(self.tickets)
        chosen = Flow() if flow is None else self.flows[caller][flow]
        self.tickets.append(
            self.queue.push(number, images, deadline=deadline, flow=chosen, caller=str(caller))
        )
        self.left[number] = list(range(images))
        self.caller_of.append(caller)

    @rule()
    def pop(self) -> None:
        """Serve an image: the next image of its call, or None if no image waits."""
        before = self.waiting()
        found = self.queue.pop()
        if found is None:
            assert not before
            return
        number, index = found
        assert self.left[number].pop(0) == index
        self.served[self.caller_of[number]] += 1
        counts = [self.served[caller] for caller in before]
        assert max(counts) - min(counts) <= 2, "callers that wait have equal shares"
        if self.waiting() != before:
            self.served.clear()

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Remove a call with the images that were not served."""
        before = self.waiting()
        number = data.draw(st.integers(0, len(self.tickets) - 1))
        self.queue.remove(self.tickets[number])
        self.left[number] = []
        if self.waiting() != before:
            self.served.clear()

    @invariant()
    def counts(self) -> None:
        """Check the numbers of images and requests that were neither served nor removed."""
        assert len(self.queue) == sum(map(len, self.left.values()))
        assert self.queue.requests == sum(bool(images) for images in self.left.values())
        assert 0 <= self.queue.ahead(2, "0") <= len(self.queue)
        assert len(self.queue._callers) == len(self.waiting())

    def teardown(self) -> None:
        """All waiting images are served, and the queue is empty."""
        for _ in range(len(self.queue)):
            self.pop()
        assert self.queue.pop() is None
        assert not self.queue._callers


@pytest.mark.slow
def test_images_are_served_once_and_in_order() -> None:
    """Each image is served once, in the order of its call, or removed with it; shares are equal."""
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(max_examples=300, stateful_step_count=50),
    )
