"""Scheduler: every caller gets its own answer, order, grouping of answers, and shutdown."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo
from topwork.errors import ImageError, Unavailable
from topwork.serving.answers import LOOP_BYTES
from topwork.serving.encoders.encoder import Check, Deliver, Encoded, Failed, Item, Refused, Result
from topwork.serving.fair_queue import Flow
from topwork.serving.request_batch import Content, ImageOutcome, Scores
from topwork.serving.scheduler import EncodingError, Scheduler

Answer = tuple[int, list[float | str]]
"""Revision of a fake head, with the number or the error of each image."""


DIGEST = "0" * 64


class HeadError(Exception):
    """Error of a broken fake head."""


@dataclass(eq=False)
class FakeHead:
    """Head that returns each embedding with its revision."""

    revision: int
    broken: bool = False
    rows: int = 0
    size: int = 0
    threads: set[str] = field(default_factory=set)

    def run(
        self, embeddings: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return (number, revision) for each embedding."""
        self.rows = max(self.rows, len(embeddings))
        self.threads.add(threading.current_thread().name)
        if self.broken:
            raise HeadError
        revisions = np.full((len(embeddings), 1), self.revision, dtype=np.float32)
        return np.hstack([embeddings, revisions]), None


class FakeEncoder:
    """Encoder whose embedding is the image's number, delivered when the test decides."""

    def __init__(self, capacity: int = 2) -> None:
        self.capacity = capacity
        self.submitted: list[int] = []
        self.presents: list[int] = []
        self.requests: list[int] = []
        self.pending: list[Item] = []
        self.cancelled: set[int] = set()
        self.closed = False
        self.on_credit: Callable[[], None] | None = None
        self._deliver: Deliver | None = None

    async def start(self, deliver: Deliver, on_credit: Callable[[], None]) -> None:
        """See Encoder."""
        self._deliver, self.on_credit = deliver, on_credit

    async def aclose(self) -> None:
        """See Encoder."""
        self.closed = True
        while self.pending:
            self.finish(stopping=True)

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:  # noqa: ARG002  # part of the protocol
        """See Encoder."""
        return Check(agreement=None, provider="none")

    def unload(self, digest: str) -> None:
        """See Encoder."""

    def credits(self, requests: int) -> int:
        """See Encoder."""
        self.requests.append(requests)
        return self.capacity - len(self.pending)

    def submit(self, item: Item, *, present: int) -> None:
        """Keep the item until the test delivers its result."""
        assert len(self.pending) < self.capacity, "more items than credits"
        assert item.backbone == DIGEST
        self.submitted.append(int(item.content))
        self.presents.append(present)
        self.pending.append(item)

    def cancel(self, identifier: int) -> None:
        """See Encoder."""
        self.cancelled.add(identifier)

    def works(self) -> bool:
        """See Encoder."""
        return not self.closed

    def finish(self, index: int = 0, *, fail: bool = False, stopping: bool = False) -> None:
        """Deliver the result of a pending item."""
        assert self._deliver is not None, "it was started"
        self._deliver(self._result(self.pending.pop(index), fail=fail, stopping=stopping))

    def _result(self, item: Item, *, fail: bool, stopping: bool) -> Result:
        number = int(item.content)
        if fail or stopping or item.id in self.cancelled:
            return Failed(id=item.id, message=str(number), stopping=not fail)
        if number < 0:
            return Refused(
                id=item.id, message=f"image {number}", reason="X", started=0.0, decoded=0.0
            )
        embedding = np.array([number], dtype=np.float32).tobytes()
        return Encoded(
            id=item.id, embedding=embedding, started=0.0, decoded=0.0, waited=0.0, computed=0.0
        )


@dataclass(eq=False)
class FakeBatch:
    """Batch of numbered images; negative odd numbers cannot be decoded, even ones not be sent."""

    numbers: list[int]
    head: Any
    backbone: str = DIGEST

    @property
    def images(self) -> int:
        """See RequestBatch."""
        return len(self.numbers)

    def content(self, index: int) -> Content:
        """Return the number as text."""
        number = self.numbers[index]
        if number < 0 and number % 2 == 0:
            raise ImageError(f"image {number}")
        return Content(b"%d" % number)

    def answer(self, outcomes: list[ImageOutcome], scores: Scores | None) -> Answer:
        """Return the revision, with the number or the error of each image."""
        rows = iter(scores.probabilities.tolist() if scores is not None else [])
        results: list[float | str] = []
        revision = self.head.revision
        for outcome in outcomes:
            if isinstance(outcome.result, ImageError):
                results.append(str(outcome.result))
            else:
                number, revision = next(rows)
                results.append(number)
        assert next(rows, None) is None
        return int(revision), results


async def settle() -> None:
    """Run the event loop until it is idle."""
    for _ in range(6):
        await asyncio.sleep(0)


class AnyInterleaving(RuleBasedStateMachine):
    """State machine: callers come, cancel and are answered; images fail; heads are swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.encoder = FakeEncoder()
        self.scheduler = Scheduler(self.encoder, cores=2)
        self.loop.run_until_complete(self.scheduler.start())
        self.head = FakeHead(1)
        self.next = 0
        self.batches: list[FakeBatch] = []
        self.callers: list[asyncio.Task[Answer]] = []
        self.given_up: set[int] = set()
        self.left_in_time: set[int] = set()
        self.failed: set[int] = set()

    @rule(
        bad=st.lists(st.sampled_from([0, 0, 0, -1, -2]), min_size=1, max_size=4),
        deadline=st.integers(0, 3),
    )
    def come(self, bad: list[int], deadline: int) -> None:
        """Add a caller, with some images that cannot be decoded."""
        numbers = [error or self.next + index for index, error in enumerate(bad)]
        self.next += len(numbers)
        batch = FakeBatch(numbers, self.head)
        self.batches.append(batch)
        run = self.scheduler.run(batch, deadline=deadline, flow=Flow())
        self.callers.append(self.loop.create_task(run))

    @rule(capacity=st.integers(0, 4))
    def grow(self, capacity: int) -> None:
        """Change the encoder's credits, as processes end and start."""
        self.encoder.capacity = max(capacity, len(self.encoder.pending))
        assert self.encoder.on_credit is not None
        self.loop.call_soon(self.encoder.on_credit)
        self.go_on()

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """Cancel a caller at any stage of its images; the event loop notices at once."""
        caller = data.draw(st.integers(0, len(self.callers) - 1))
        if self.callers[caller].cancel():
            self.given_up.add(caller)
            self.go_on()
            taken = set(self.encoder.submitted)
            self.left_in_time.update(set(self.batches[caller].numbers) - taken)

    @rule(broken=st.sampled_from([False, False, True]))
    def swap(self, broken: bool) -> None:
        """Use another revision for later callers."""
        self.head = FakeHead(self.head.revision + 1, broken=broken)

    @precondition(lambda self: self.encoder.pending)
    @rule(data=st.data(), fail=st.sampled_from([False, False, False, True]))
    def deliver(self, data: st.DataObject, fail: bool) -> None:
        """Deliver the result of any pending image."""
        index = data.draw(st.integers(0, len(self.encoder.pending) - 1))
        if fail:
            self.failed.add(int(self.encoder.pending[index].content))
        self.loop.call_soon(lambda: self.encoder.finish(index, fail=fail))
        self.loop.run_until_complete(asyncio.sleep(0))

    @rule()
    def go_on(self) -> None:
        """Run the event loop until it is idle."""
        self.loop.run_until_complete(settle())

    @invariant()
    def nothing_for_those_who_left(self) -> None:
        """No waiting image of a cancelled caller is encoded, and none is encoded twice."""
        submitted = [number for number in self.encoder.submitted if number >= 0]
        assert not self.left_in_time.intersection(submitted)
        assert len(submitted) == len(set(submitted))

    @invariant()
    def no_credit_is_unused(self) -> None:
        """While images wait, the encoder has as many as it takes."""
        self.go_on()
        assert not self.scheduler.waiting() or len(self.encoder.pending) >= self.encoder.capacity

    def teardown(self) -> None:
        """At the end every caller has a result, and the scheduler is empty."""
        try:
            self.grow(2)
            while self.encoder.pending:
                self.encoder.finish()
                self.go_on()
            for caller in range(len(self.callers)):
                self.check(caller)
            assert not self.scheduler._items
            assert not self.scheduler._entries
            assert not len(self.scheduler._queue)
        finally:
            self.loop.close()
        assert not self.complaints

    def check(self, caller: int) -> None:
        """Assert that a caller has its own answer, cancellation or error."""
        task, batch = self.callers[caller], self.batches[caller]
        assert task.done(), f"caller {caller} waits forever"
        if task.cancelled():
            assert caller in self.given_up
        elif isinstance(error := task.exception(), EncodingError):
            assert int(error.args[0]) in self.failed.intersection(batch.numbers)
        elif error is not None:
            assert isinstance(error, HeadError)
            assert batch.head.broken
        else:
            expected = [
                f"image {number}" if number < 0 else float(number) for number in batch.numbers
            ]
            assert task.result() == (batch.head.revision, expected)


@pytest.mark.slow
def test_every_caller_gets_its_own_result() -> None:
    """In any interleaving, every caller gets its own answer, cancellation or error."""
    run_state_machine_as_test(
        AnyInterleaving,
        settings=settings(max_examples=400, stateful_step_count=40),
    )


@pytest.mark.slow
def test_thousands_of_callers_are_answered() -> None:
    """With cancellations, deadlines and failures, every caller gets its own answer."""
    chance = random.Random(1)
    heads = [FakeHead(revision) for revision in range(1, 5)]
    counts = {"answers": 0, "cancels": 0, "failures": 0}

    async def caller(scheduler: Scheduler, first: int) -> None:
        numbers = [
            -1 if chance.random() < 0.1 else first + index
            for index in range(chance.choice((1, 1, 1, 3, 9)))
        ]
        batch = FakeBatch(numbers, chance.choice(heads))
        try:
            async with asyncio.timeout(chance.choice((None, None, 0.0, 0.001))):
                answer = await scheduler.run(batch, deadline=chance.random(), flow=Flow())
        except TimeoutError:
            counts["cancels"] += 1
        except EncodingError as error:
            counts["failures"] += int(error.args[0]) in numbers
        else:
            expected = [f"image {number}" if number < 0 else float(number) for number in numbers]
            assert answer == (batch.head.revision, expected)
            counts["answers"] += 1

    async def encode(encoder: FakeEncoder) -> None:
        while True:
            await asyncio.sleep(chance.random() / 5000)
            while encoder.pending and chance.random() < 0.9:
                index = chance.randrange(len(encoder.pending))
                encoder.finish(index, fail=chance.random() < 0.01)

    async def scenario() -> None:
        encoder = FakeEncoder(capacity=6)
        scheduler = Scheduler(encoder, cores=3)
        await scheduler.start()
        encoding = asyncio.create_task(encode(encoder))
        for wave in range(30):
            callers = [
                caller(scheduler, 1000 * wave + 10 * first_number) for first_number in range(100)
            ]
            async with asyncio.timeout(60):
                await asyncio.gather(*callers)
        encoding.cancel()
        await scheduler.aclose()

    asyncio.run(scenario())
    assert sum(counts.values()) == 3000
    assert min(counts.values()) > 10


class Harness:
    """Scheduler whose encoder delivers when the test decides."""

    def __init__(self, capacity: int = 2) -> None:
        self.encoder = FakeEncoder(capacity)
        self.scheduler = Scheduler(self.encoder, cores=2)
        self.head = FakeHead(1)

    async def start(self) -> Harness:
        """Start the scheduler."""
        await self.scheduler.start()
        return self

    def ask(self, *numbers: int, deadline: float = 1.0, caller: str = "") -> asyncio.Task[Answer]:
        """Start a task that runs a batch."""
        batch = FakeBatch(list(numbers), self.head)
        run = self.scheduler.run(batch, deadline=deadline, flow=Flow(), caller=caller)
        return asyncio.create_task(run)

    async def finish_all(self) -> None:
        """Deliver the results of all images, in order."""
        while self.encoder.pending:
            self.encoder.finish()
            await settle()


def test_answers_that_are_complete_at_once_form_a_group() -> None:
    """Results that arrive together are answered with one run of the head."""

    async def scenario() -> None:
        harness = await Harness(capacity=8).start()
        tasks = [harness.ask(number) for number in range(8)]
        await settle()
        for _ in range(6):
            harness.encoder.finish()
        await settle()
        assert [task.done() for task in tasks] == [True] * 6 + [False] * 2
        assert harness.head.rows == 6
        await harness.finish_all()
        assert [await task for task in tasks] == [(1, [float(number)]) for number in range(8)]

    asyncio.run(scenario())


def test_large_answers_do_not_block_the_event_loop() -> None:
    """A large head, or one of many images, runs in a thread."""

    async def scenario() -> None:
        harness = await Harness(capacity=8).start()
        for size, name in ((LOOP_BYTES // 2, "MainThread"), (LOOP_BYTES // 2 + 1, "heads_0")):
            harness.head = FakeHead(1, size=size)
            task = harness.ask(1, 2)
            await settle()
            await harness.finish_all()
            assert await task == (1, [1.0, 2.0])
            assert harness.head.threads == {name}
        await harness.scheduler.aclose()

    asyncio.run(scenario())


def test_no_answer_waits_behind_a_large_request() -> None:
    """A single image is answered when it is embedded, despite a request of 256 images."""

    async def scenario() -> None:
        harness = await Harness().start()
        large, lone = harness.ask(*range(256)), harness.ask(999)
        await settle()
        for _ in range(4):
            harness.encoder.finish()
            await settle()
        assert lone.done()
        assert not large.done()
        large.cancel()

    asyncio.run(scenario())


def test_encoder_gets_no_more_than_its_credits() -> None:
    """The others wait in the queue, where the earliest deadline goes first."""

    async def scenario() -> None:
        harness = await Harness(capacity=1).start()
        tasks = [harness.ask(number, deadline=10.0 - number) for number in range(4)]
        await settle()
        assert harness.encoder.submitted == [0]
        assert harness.scheduler.waiting() == 3
        await harness.finish_all()
        assert harness.encoder.submitted == [0, 3, 2, 1]
        assert all(task.done() for task in tasks)

    asyncio.run(scenario())


def test_callers_take_turns() -> None:
    """A caller with many calls has as many turns as one with a single call."""

    async def scenario() -> None:
        harness = await Harness(capacity=1).start()
        greedy = [harness.ask(number, caller="greedy") for number in range(50)]
        modest = harness.ask(100, 101, 102, caller="modest")
        await settle()
        await harness.finish_all()
        await asyncio.gather(*greedy, modest)
        assert harness.encoder.submitted.index(102) <= 6

    asyncio.run(scenario())


def test_encoder_gets_the_number_of_present_images() -> None:
    """``present`` is 1 for a single image and 3 for the first of three images."""

    async def scenario() -> None:
        harness = await Harness(capacity=1).start()
        for numbers in ((1,), (2, 3, 4)):
            task = harness.ask(*numbers)
            await settle()
            await harness.finish_all()
            await task
        assert harness.encoder.presents == [1, 3, 2, 1]

    asyncio.run(scenario())


def test_encoder_gets_the_number_of_waiting_requests() -> None:
    """Requests count, whatever their number of images."""

    async def scenario() -> None:
        harness = await Harness(capacity=1).start()
        tasks = [harness.ask(1), harness.ask(2), harness.ask(*range(3, 9))]
        await settle()
        assert harness.encoder.requests[-1] == 2
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())


def test_cancelled_images_are_dropped_by_the_encoder() -> None:
    """The encoder is told of the items that it has; the others never reach it."""

    async def scenario() -> None:
        harness = await Harness().start()
        task = harness.ask(1, 2, 3)
        await settle()
        items = {item.id for item in harness.encoder.pending}
        task.cancel()
        await settle()
        assert harness.encoder.cancelled == items
        await harness.finish_all()
        assert harness.encoder.submitted == [1, 2]

    asyncio.run(scenario())


def test_images_go_on_when_credits_come_back() -> None:
    """After a time without credits, such as that of a restart, waiting images are encoded."""

    async def scenario() -> None:
        harness = await Harness(capacity=0).start()
        task = harness.ask(1)
        await settle()
        assert harness.encoder.submitted == []
        harness.encoder.capacity = 1
        assert harness.encoder.on_credit is not None
        harness.encoder.on_credit()
        await harness.finish_all()
        assert await task == (1, [1.0])

    asyncio.run(scenario())


def test_aclose_fails_all_callers() -> None:
    """Callers at aclose() and later callers get Unavailable; the encoder is closed."""

    async def scenario() -> None:
        harness = await Harness(capacity=1).start()
        tasks = [harness.ask(1), harness.ask(2)]
        await settle()
        await harness.scheduler.aclose()
        for task in (*tasks, harness.ask(3)):
            with pytest.raises(Unavailable):
                await task
        assert harness.encoder.closed
        assert harness.encoder.submitted == [1]
        assert not harness.scheduler.works()

    asyncio.run(scenario())


def test_stalled_seconds_count_while_there_is_work() -> None:
    """They begin with the work, start again with each result, and end with the last."""

    async def scenario() -> None:
        harness = await Harness(capacity=1).start()
        assert harness.scheduler.stalled_seconds() == 0.0
        tasks = [harness.ask(1), harness.ask(2)]
        await settle()
        await asyncio.sleep(0.05)
        assert harness.scheduler.stalled_seconds() >= 0.05
        harness.encoder.finish()
        assert harness.scheduler.stalled_seconds() < 0.05
        await harness.finish_all()
        assert harness.scheduler.stalled_seconds() == 0.0
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_expected_seconds_include_images_ahead() -> None:
    """The estimate includes the waiting images that are served before the new batch."""

    async def scenario() -> None:
        harness = await Harness(capacity=0).start()
        alone = harness.scheduler.expected_seconds(1, "")
        assert alone > 0
        task = harness.ask(*range(100))
        await settle()
        assert harness.scheduler.expected_seconds(1, "") == pytest.approx(2 * alone)
        assert harness.scheduler.expected_seconds(100, "") == pytest.approx(200 * alone)
        task.cancel()
        await settle()
        assert harness.scheduler.expected_seconds(100, "") == pytest.approx(100 * alone)

    asyncio.run(scenario())
