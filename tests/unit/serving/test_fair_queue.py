"""Fair queue: callers take turns, and deadlines order the images of a turn."""

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
    """Return the owners of all images in the order of service."""
    found = []
    while (image := queue.pop()) is not None:
        found.append(image[0])
    return found


def test_single_image_does_not_wait_behind_a_large_request() -> None:
    """A single image that arrives after a request of 256 images is served within 3 images."""
    queue: FairQueue[str] = FairQueue()
    queue.push("large", 256, deadline=9, flow=Flow())
    assert queue.pop() == ("large", 0)
    queue.push("lone", 1, deadline=9, flow=Flow())
    assert drain(queue)[:3].count("lone") == 1


def test_two_large_requests_take_turns() -> None:
    """Two waiting requests alternate, image by image."""
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 6, deadline=9, flow=Flow())
    queue.push("b", 3, deadline=9, flow=Flow())
    assert "".join(drain(queue)) == "ababab" + "aaa"


def test_large_request_is_not_starved_by_single_images() -> None:
    """If a single image arrives with each served image, a large request gets every other turn."""
    queue: FairQueue[str] = FairQueue()
    queue.push("large", 20, deadline=0, flow=Flow())
    for number in range(3):
        queue.push(f"lone {number}", 1, deadline=-1, flow=Flow())
    served = []
    for number in range(200):
        image = queue.pop()
        assert image is not None
        served.append(image[0])
        if image[0] != "large":
            queue.push(f"later {number}", 1, deadline=-1, flow=Flow())
    assert served.count("large") == 20
    assert served[:100].count("large") > 10


def test_the_earliest_deadline_of_a_turn_is_first() -> None:
    """Single images of a turn are served by deadline; ties are served by arrival."""
    queue: FairQueue[str] = FairQueue()
    for name, deadline in (("late", 3.0), ("early", 1.0), ("middle", 2.0), ("middle too", 2.0)):
        queue.push(name, 1, deadline=deadline, flow=Flow())
    assert drain(queue) == ["early", "middle", "middle too", "late"]


def test_the_messages_of_a_flow_share_its_turns() -> None:
    """A caller with ten requests has as many turns as a caller with one request."""
    queue: FairQueue[str] = FairQueue()
    stream = Flow()
    for _ in range(10):
        queue.push("stream", 1, deadline=9, flow=stream)
    queue.push("other", 3, deadline=9, flow=Flow())
    assert drain(queue)[:6].count("other") == 3


def test_removed_request_returns_its_turns() -> None:
    """A flow whose request was removed is not charged for images that were never served."""
    queue: FairQueue[str] = FairQueue()
    flow = Flow()
    queue.remove(queue.push("gone", 100, deadline=9, flow=flow))
    queue.push("other", 3, deadline=9, flow=Flow())
    queue.push("again", 3, deadline=9, flow=flow)
    assert "".join(owner[0] for owner in drain(queue)) == "oaoaoa"


def test_removed_requests_free_memory() -> None:
    """The heap stays small after many removals while another request waits."""
    queue: FairQueue[str] = FairQueue()
    queue.push("first", 1, deadline=0, flow=Flow())
    for _ in range(1000):
        queue.remove(queue.push("gone", 4, deadline=9, flow=Flow()))
    assert len(queue._heap) < 50
    assert drain(queue) == ["first"]


@pytest.mark.parametrize(("images", "ahead"), [(1, 3), (5, 14), (100, 14)])
def test_ahead_counts_images_that_may_be_served_first(images: int, ahead: int) -> None:
    """Each other caller precedes a new request with at most as many images as the request has."""
    queue: FairQueue[str] = FairQueue()
    for waiting in (10, 3, 1):
        queue.push("other", waiting, deadline=9, flow=Flow())
    assert queue.ahead(images) == ahead


class AnyOrder(RuleBasedStateMachine):
    """State machine: requests are added, removed and served in any order."""

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
        """Add a request, with its own or a shared flow."""
        number = len(self.tickets)
        chosen = Flow() if flow is None else self.flows[flow]
        self.tickets.append(self.queue.push(number, images, deadline=deadline, flow=chosen))
        self.left[number] = list(range(images))

    @rule()
    def pop(self) -> None:
        """Serve an image: the next image of its request, or None if no image waits."""
        found = self.queue.pop()
        if found is None:
            assert not any(self.left.values())
        else:
            number, index = found
            assert self.left[number].pop(0) == index

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Remove a request with the images that were not served."""
        number = data.draw(st.integers(0, len(self.tickets) - 1))
        self.queue.remove(self.tickets[number])
        self.left[number] = []

    @invariant()
    def counts(self) -> None:
        """Check that the length is the number of images that were neither served nor removed."""
        assert len(self.queue) == sum(map(len, self.left.values()))
        assert 0 <= self.queue.ahead(2) <= len(self.queue)

    def teardown(self) -> None:
        """All waiting images are served, and the queue is empty."""
        for _ in range(len(self.queue)):
            self.pop()
        assert self.queue.pop() is None
        assert self.queue._flows == 0
        assert all(flow.waiting == 0 for flow in self.flows)


@pytest.mark.slow
def test_images_are_served_once_and_in_order() -> None:
    """Each image is served once, in the order of its request, or removed with it."""
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(max_examples=200, stateful_step_count=40),
    )
