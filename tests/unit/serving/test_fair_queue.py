"""The queue gives callers their turns, and keeps deadlines within a turn."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from topwork.serving.fair_queue import FairQueue, Flow, Ticket


def drain(queue: FairQueue[str]) -> list[str]:
    """Return the owners of all images, in the order in which they come."""
    found = []
    while (one := queue.pop()) is not None:
        found.append(one[0])
    return found


def test_a_lone_image_does_not_wait_behind_a_large_request() -> None:
    """Who comes after a request of 256 images is next but one, not the 257th."""
    queue: FairQueue[str] = FairQueue()
    queue.push("large", 256, deadline=9, flow=Flow())
    assert queue.pop() == ("large", 0)
    queue.push("lone", 1, deadline=9, flow=Flow())
    assert drain(queue)[:3].count("lone") == 1


def test_two_large_requests_take_turns() -> None:
    """Of two requests that wait together each has every other image."""
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 6, deadline=9, flow=Flow())
    queue.push("b", 3, deadline=9, flow=Flow())
    assert "".join(drain(queue)) == "ababab" + "aaa"


def test_a_large_request_is_not_starved_by_lone_ones() -> None:
    """Where a new lone image comes with each that is served, a large request has every other."""
    queue: FairQueue[str] = FairQueue()
    queue.push("large", 20, deadline=0, flow=Flow())
    for number in range(3):
        queue.push(f"lone {number}", 1, deadline=-1, flow=Flow())
    served = []
    for number in range(200):
        one = queue.pop()
        assert one is not None
        served.append(one[0])
        if one[0] != "large":
            queue.push(f"later {number}", 1, deadline=-1, flow=Flow())
    assert served.count("large") == 20
    assert served[:100].count("large") > 10


def test_the_earliest_deadline_of_a_turn_is_first() -> None:
    """Lone images that wait together come by deadline; equal ones by arrival."""
    queue: FairQueue[str] = FairQueue()
    for name, deadline in (("late", 3.0), ("early", 1.0), ("middle", 2.0), ("middle too", 2.0)):
        queue.push(name, 1, deadline=deadline, flow=Flow())
    assert drain(queue) == ["early", "middle", "middle too", "late"]


def test_the_messages_of_a_flow_share_its_turns() -> None:
    """A caller with ten requests under way has no more turns than one with one."""
    queue: FairQueue[str] = FairQueue()
    stream = Flow()
    for _ in range(10):
        queue.push("stream", 1, deadline=9, flow=stream)
    queue.push("other", 3, deadline=9, flow=Flow())
    assert drain(queue)[:6].count("other") == 3


def test_a_removed_request_gives_its_turns_back() -> None:
    """A flow whose request left the queue is not behind for what was never served."""
    queue: FairQueue[str] = FairQueue()
    flow = Flow()
    queue.remove(queue.push("gone", 100, deadline=9, flow=flow))
    queue.push("other", 3, deadline=9, flow=Flow())
    queue.push("again", 3, deadline=9, flow=flow)
    assert "".join(one[0] for one in drain(queue)) == "oaoaoa"


def test_what_was_removed_is_let_go() -> None:
    """Requests that left hold no memory, however many, while others wait."""
    queue: FairQueue[str] = FairQueue()
    queue.push("first", 1, deadline=0, flow=Flow())
    for _ in range(1000):
        queue.remove(queue.push("gone", 4, deadline=9, flow=Flow()))
    assert len(queue._heap) < 50
    assert drain(queue) == ["first"]


@pytest.mark.parametrize(("images", "ahead"), [(1, 3), (5, 14), (100, 14)])
def test_how_many_may_go_before(images: int, ahead: int) -> None:
    """Before a new request go at most as many images of each other caller as it has itself."""
    queue: FairQueue[str] = FairQueue()
    for waiting in (10, 3, 1):
        queue.push("other", waiting, deadline=9, flow=Flow())
    assert queue.ahead(images) == ahead


class AnyOrder(RuleBasedStateMachine):
    """Requests come, leave and are served in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.flows = [Flow() for _ in range(3)]
        self.tickets: list[Ticket[int]] = []
        self.left: dict[int, list[int]] = {}

    @rule(
        images=st.integers(1, 6),
        deadline=st.integers(0, 3),
        flow=st.none() | st.integers(0, 2),
    )
    def push(self, images: int, deadline: int, flow: int | None) -> None:
        """Let a request come, of its own flow or a shared one."""
        number = len(self.tickets)
        chosen = Flow() if flow is None else self.flows[flow]
        self.tickets.append(self.queue.push(number, images, deadline=deadline, flow=chosen))
        self.left[number] = list(range(images))

    @rule()
    def pop(self) -> None:
        """Serve an image: the next one of its request, none only if none waits."""
        found = self.queue.pop()
        if found is None:
            assert not any(self.left.values())
        else:
            number, index = found
            assert self.left[number].pop(0) == index

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Let a request leave, whatever is left of it."""
        number = data.draw(st.integers(0, len(self.tickets) - 1))
        self.queue.remove(self.tickets[number])
        self.left[number] = []

    @invariant()
    def counts(self) -> None:
        """Count what came and neither left nor was served."""
        assert len(self.queue) == sum(map(len, self.left.values()))
        assert 0 <= self.queue.ahead(2) <= len(self.queue)

    def teardown(self) -> None:
        """Everything that waits comes out, and leaves nothing behind."""
        for _ in range(len(self.queue)):
            self.pop()
        assert self.queue.pop() is None
        assert self.queue._flows == 0
        assert all(flow.waiting == 0 for flow in self.flows)


@pytest.mark.slow
def test_every_image_comes_once_and_in_its_requests_order() -> None:
    """Whatever comes, leaves and is served: each image comes once, or left with its request."""
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(max_examples=200, stateful_step_count=40),
    )
