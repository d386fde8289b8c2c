"""Scheduler: every caller gets its own answer, grouping of answers, and shutdown."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
from dataclasses import dataclass
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
from structlog.testing import capture_logs
from support import tiny

from topwork.bundle.manifest import BackboneInfo
from topwork.errors import ImageError, Unavailable
from topwork.inputs.image import Pixels
from topwork.serving import scheduler as scheduler_module
from topwork.serving.encoders.backbone import Deliver, Embedded
from topwork.serving.fair_queue import Flow
from topwork.serving.scheduler import LARGEST_GROUP, NICE, ImageOutcome, Scheduler, Scores

INFO = tiny.backbone_info(b"")
Answer = tuple[int, list[float | str]]
"""Revision of a fake head, with the number or the error of each image."""


class BackboneError(Exception):
    """Error of the fake backbone."""


class HeadError(Exception):
    """Error of a broken fake head."""


@dataclass(eq=False)
class FakeHead:
    """Head that returns each embedding with its revision."""

    revision: int
    broken: bool = False
    rows: int = 0

    def run(
        self, embeddings: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return (number, revision) for each embedding."""
        self.rows = max(self.rows, len(embeddings))
        if self.broken:
            raise HeadError
        revisions = np.full((len(embeddings), 1), self.revision, dtype=np.float32)
        return np.hstack([embeddings, revisions]), None


class FakeBackbone:
    """Backbone whose embedding is the image's number, delivered when the test decides."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.presents: list[int] = []
        self.pending: list[tuple[int, Deliver]] = []

    @property
    def info(self) -> BackboneInfo:
        """See Backbone."""
        return INFO

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """Store the image until the test delivers its result."""
        number = int(pixels.view(np.uint64)[0])
        self.taken.append(number)
        self.presents.append(present)
        self.pending.append((number, deliver))

    def finish(self, index: int = 0, *, fail: bool = False) -> None:
        """Deliver the result of a pending image."""
        number, deliver = self.pending.pop(index)
        deliver(BackboneError(number) if fail else embedded(number))


def embedded(number: int) -> Embedded:
    """Return an embedding of ``number``."""
    embedding = np.array([number], dtype=np.float32)
    return Embedded(embedding=embedding, waited=0, computed=0, micro_batch=1)


@dataclass(eq=False)
class FakeBatch:
    """Batch of numbered images; negative numbers cannot be decoded."""

    numbers: list[int]
    backbone: Any
    head: Any

    @property
    def images(self) -> int:
        """See RequestBatch."""
        return len(self.numbers)

    def decode(self, index: int) -> Pixels:
        """Return pixels that encode the number."""
        if self.numbers[index] < 0:
            raise ImageError(f"image {self.numbers[index]}")
        return np.array([self.numbers[index]], dtype=np.uint64).view(np.uint8)

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
        self.scheduler = Scheduler(cores=2)
        self.backbone = FakeBackbone()
        self.head = FakeHead(1)
        self.next = 0
        self.batches: list[FakeBatch] = []
        self.callers: list[asyncio.Task[Answer]] = []
        self.given_up: set[int] = set()
        self.left_in_time: set[int] = set()
        self.failed: set[int] = set()

    @rule(bad=st.lists(st.booleans(), min_size=1, max_size=4), deadline=st.integers(0, 3))
    def come(self, bad: list[bool], deadline: int) -> None:
        """Add a caller, with some images that cannot be decoded."""
        numbers = [
            -1 if number_is_bad else self.next + index for index, number_is_bad in enumerate(bad)
        ]
        self.next += len(numbers)
        batch = FakeBatch(numbers, self.backbone, self.head)
        self.batches.append(batch)
        run = self.scheduler.run(batch, deadline=deadline, flow=Flow())
        self.callers.append(self.loop.create_task(run))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """Cancel a caller at any stage of its images; the event loop notices at once."""
        caller = data.draw(st.integers(0, len(self.callers) - 1))
        if self.callers[caller].cancel():
            self.given_up.add(caller)
            self.go_on()
            taken = set(self.backbone.taken)
            self.left_in_time.update(set(self.batches[caller].numbers) - taken)

    @rule(broken=st.sampled_from([False, False, True]))
    def swap(self, broken: bool) -> None:
        """Use another revision for later callers."""
        self.head = FakeHead(self.head.revision + 1, broken=broken)

    @rule()
    def step(self) -> None:
        """Run the next step with its images; return False if idle."""
        self.scheduler._step()

    @precondition(lambda self: self.backbone.pending)
    @rule(data=st.data(), fail=st.sampled_from([False, False, False, True]))
    def deliver(self, data: st.DataObject, fail: bool) -> None:
        """Deliver the result of any pending image."""
        index = data.draw(st.integers(0, len(self.backbone.pending) - 1))
        if fail:
            self.failed.add(self.backbone.pending[index][0])
        self.backbone.finish(index, fail=fail)

    @rule()
    def go_on(self) -> None:
        """Run the event loop until it is idle."""
        self.loop.run_until_complete(settle())

    @invariant()
    def nothing_for_those_who_left(self) -> None:
        """No image of a cancelled caller is embedded, and none is embedded twice."""
        assert not self.left_in_time.intersection(self.backbone.taken)
        assert len(self.backbone.taken) == len(set(self.backbone.taken))

    def teardown(self) -> None:
        """At the end every caller has a result, and the scheduler is empty."""
        try:
            self.go_on()
            while self.scheduler._step() or self.backbone.pending:
                while self.backbone.pending:
                    self.backbone.finish()
            self.go_on()
            for caller in range(len(self.callers)):
                self.check(caller)
            assert self.scheduler._in_progress == 0
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
        elif isinstance(error := task.exception(), BackboneError):
            assert error.args[0] in self.failed.intersection(batch.numbers)
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


class RandomBackbone:
    """Backbone that delivers in the same or another thread, and sometimes fails."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    @property
    def info(self) -> BackboneInfo:
        """See Backbone."""
        return INFO

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """Deliver in this thread or another, now or later."""
        assert present > 0
        number = int(pixels.view(np.uint64)[0])
        result = BackboneError(number) if number % 97 == 0 else embedded(number)
        if self._random.random() < 0.5:
            deliver(result)
        else:
            threading.Timer(self._random.random() / 1000, deliver, [result]).start()


@pytest.mark.slow
def test_threads_answer_thousands_of_callers() -> None:
    """With threads, cancellations, deadlines and failures, every caller gets its own answer."""
    chance = random.Random(1)
    backbone = RandomBackbone(2)
    heads = [FakeHead(revision) for revision in range(1, 5)]
    counts = {"answers": 0, "cancels": 0, "failures": 0}

    async def caller(scheduler: Scheduler, first: int) -> None:
        numbers = [
            -1 if chance.random() < 0.1 else first + index
            for index in range(chance.choice((1, 1, 1, 3, 9)))
        ]
        batch = FakeBatch(numbers, backbone, chance.choice(heads))
        try:
            async with asyncio.timeout(chance.choice((None, None, 0.0, 0.001))):
                answer = await scheduler.run(batch, deadline=chance.random(), flow=Flow())
        except TimeoutError:
            counts["cancels"] += 1
        except BackboneError as error:
            counts["failures"] += error.args[0] in numbers
        else:
            expected = [f"image {number}" if number < 0 else float(number) for number in numbers]
            assert answer == (batch.head.revision, expected)
            counts["answers"] += 1

    async def scenario() -> None:
        scheduler = Scheduler(cores=3)
        scheduler.start()
        for wave in range(30):
            callers = [
                caller(scheduler, 1000 * wave + 10 * first_number) for first_number in range(100)
            ]
            async with asyncio.timeout(60):
                await asyncio.gather(*callers)
        scheduler.close()

    asyncio.run(scenario())
    assert sum(counts.values()) == 3000
    assert min(counts.values()) > 10


class Harness:
    """Scheduler without threads: the test runs each step."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(cores=2)
        self.backbone = FakeBackbone()
        self.head = FakeHead(1)

    def ask(self, *numbers: int) -> asyncio.Task[Answer]:
        """Start a task that runs a batch."""
        batch = FakeBatch(list(numbers), self.backbone, self.head)
        return asyncio.create_task(self.scheduler.run(batch, deadline=1.0, flow=Flow()))

    def step(self) -> bool:
        """Run the next step with its images; return False if idle."""
        found = self.scheduler._step()
        while self.backbone.pending:
            self.backbone.finish()
        return found


def test_answers_are_grouped_while_images_wait() -> None:
    """Behind a long queue, one run of the head makes several answers."""

    async def scenario() -> None:
        harness = Harness()
        tasks = [harness.ask(number) for number in range(100)]
        await settle()
        steps = 0
        while harness.step():
            steps += 1
        await asyncio.gather(*tasks)
        assert [task.result() for task in tasks] == [(1, [float(number)]) for number in range(100)]
        assert harness.head.rows == LARGEST_GROUP
        assert steps < 100 + 30

    asyncio.run(scenario())


def test_single_image_is_answered_at_once() -> None:
    """With an empty queue, an image takes one step and its answer another."""

    async def scenario() -> None:
        harness = Harness()
        task = harness.ask(7)
        await settle()
        assert [harness.step(), harness.step(), harness.step()] == [True, True, False]
        assert await task == (1, [7.0])

    asyncio.run(scenario())


def test_no_answer_waits_behind_a_large_request() -> None:
    """A single image is answered when it is embedded, despite a request of 256 images."""

    async def scenario() -> None:
        harness = Harness()
        large, lone = harness.ask(*range(256)), harness.ask(999)
        await settle()
        for _ in range(4):
            assert harness.step()
        await settle()
        assert lone.done()
        assert not large.done()
        large.cancel()

    asyncio.run(scenario())


def test_answer_waits_for_at_most_a_group() -> None:
    """Behind many large requests an answer waits for at most LARGEST_GROUP images."""

    async def scenario() -> None:
        harness = Harness()
        tasks = [
            harness.ask(*range(100 * first_number, 100 * first_number + 50))
            for first_number in range(64)
        ]
        lone = harness.ask(99_999)
        await settle()
        for _ in range(65 + LARGEST_GROUP):
            harness.step()
        await settle()
        assert lone.done()
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())


def test_backbone_gets_the_number_of_present_images() -> None:
    """``present`` is 1 for a single image and 3 for the first of three images."""

    async def scenario() -> None:
        harness = Harness()
        for numbers in ((1,), (2, 3, 4)):
            task = harness.ask(*numbers)
            await settle()
            while harness.step():
                pass
            await task
        assert harness.backbone.presents == [1, 3, 2, 1]

    asyncio.run(scenario())


def test_image_cancelled_during_decoding_is_not_embedded() -> None:
    """An image whose caller cancels during decoding is not passed to the backbone."""

    async def scenario() -> None:
        harness = Harness()
        task = harness.ask(1)
        await settle()
        (entry,) = harness.scheduler._entries
        decode = entry.batch.decode

        def decode_meanwhile(index: int) -> Pixels:
            harness.scheduler._leave(entry)
            return decode(index)

        entry.batch.decode = decode_meanwhile  # type: ignore[method-assign]  # the fake is ours
        task.cancel()
        assert harness.step()
        assert harness.backbone.taken == []
        assert not harness.step()

    asyncio.run(scenario())


def test_close_fails_all_callers() -> None:
    """Callers at close() and later callers get Unavailable."""

    async def scenario() -> None:
        harness = Harness()
        waiting, at_work = harness.ask(1), harness.ask(2)
        await settle()
        harness.scheduler._step()
        harness.scheduler.close()
        for task in (waiting, at_work, harness.ask(3)):
            with pytest.raises(Unavailable):
                await task
        harness.backbone.finish()

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", [True, False])
def test_close_joins_the_threads(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """close() waits for images in progress, but not for a thread that hangs."""
    monkeypatch.setattr(scheduler_module, "JOIN_SECONDS", 30.0 if ends else 0.05)

    async def scenario() -> None:
        begun, go_on = threading.Event(), threading.Event()
        scheduler = Scheduler(cores=1)
        batch = FakeBatch([1, 2, 3], FakeBackbone(), FakeHead(1))

        def decode(_: int) -> Pixels:
            begun.set()
            go_on.wait()
            raise ImageError("late")

        monkeypatch.setattr(batch, "decode", decode)
        scheduler.start()
        task = asyncio.create_task(scheduler.run(batch, deadline=1.0, flow=Flow()))
        await asyncio.to_thread(begun.wait)
        if ends:
            threading.Timer(0.1, go_on.set).start()
        with capture_logs() as logged:
            scheduler.close()
        assert [line["threads"] for line in logged] == ([] if ends else [["classify-0"]])
        assert go_on.is_set() == ends
        assert any(thread.is_alive() for thread in scheduler._threads) != ends
        go_on.set()
        with pytest.raises(Unavailable):
            await task

    asyncio.run(scenario())


def test_expected_seconds_include_images_ahead() -> None:
    """The estimate includes the waiting images that are served before the new batch."""

    async def scenario() -> None:
        harness = Harness()
        alone = harness.scheduler.expected_seconds(1)
        assert alone > 0
        task = harness.ask(*range(100))
        await settle()
        assert harness.scheduler.expected_seconds(1) == pytest.approx(2 * alone)
        assert harness.scheduler.expected_seconds(100) == pytest.approx(200 * alone)
        task.cancel()
        await settle()
        assert harness.scheduler.expected_seconds(100) == pytest.approx(100 * alone)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("nice", [0, 10])
def test_threads_add_niceness_to_that_of_the_process(nice: int) -> None:
    """Threads add NICE to the niceness of the process; only root could lower it."""
    expected = min(os.nice(0) + nice + NICE, 19)
    code = """
import os, sys, threading, time
from topwork.serving.scheduler import Scheduler
nice, expected = map(int, sys.argv[1:])
os.nice(nice)
scheduler = Scheduler(cores=1)
scheduler.start()
(thread,) = (thread for thread in threading.enumerate() if thread.name == "classify-0")
end = time.monotonic() + 60
while os.getpriority(os.PRIO_PROCESS, thread.native_id) != expected:
    assert time.monotonic() < end
    time.sleep(0.001)
"""
    subprocess.run([sys.executable, "-c", code, str(nice), str(expected)], check=True)
