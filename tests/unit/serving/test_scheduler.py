"""The scheduler gives every caller its own answer, whatever happens to the others."""

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
Said = tuple[int, list[float | str]]
"""What a fake head says: its revision, and for each image its number or its error."""


class BackboneError(Exception):
    """What the fake backbone raises."""


class HeadError(Exception):
    """What a broken fake head raises."""


@dataclass(eq=False)
class FakeHead:
    """Says of an embedding what it is, and which revision it has."""

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
    """Embeds an image as the number that it bears, when the test says so."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.presents: list[int] = []
        self.pending: list[tuple[int, Deliver]] = []

    @property
    def info(self) -> BackboneInfo:
        """What every backbone has."""
        return INFO

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """Keep the image until the test delivers it."""
        number = int(pixels.view(np.uint64)[0])
        self.taken.append(number)
        self.presents.append(present)
        self.pending.append((number, deliver))

    def finish(self, index: int = 0, *, fail: bool = False) -> None:
        """End one of the images."""
        number, deliver = self.pending.pop(index)
        deliver(BackboneError(number) if fail else embedded(number))


def embedded(number: int) -> Embedded:
    """Return an embedding that bears a number."""
    embedding = np.array([number], dtype=np.float32)
    return Embedded(embedding=embedding, waited=0, computed=0, micro_batch=1)


@dataclass(eq=False)
class FakeJob:
    """Images that bear numbers; negative ones cannot be decoded."""

    numbers: list[int]
    backbone: Any
    head: Any

    @property
    def images(self) -> int:
        """How many."""
        return len(self.numbers)

    def decode(self, index: int) -> Pixels:
        """Return pixels that bear the number."""
        if self.numbers[index] < 0:
            raise ImageError(f"image {self.numbers[index]}")
        return np.array([self.numbers[index]], dtype=np.uint64).view(np.uint8)

    def answer(self, outcomes: list[ImageOutcome], scores: Scores | None) -> Said:
        """Return what was said of each image, and by which revision."""
        rows = iter(scores.probabilities.tolist() if scores is not None else [])
        said: list[float | str] = []
        revision = self.head.revision
        for outcome in outcomes:
            if isinstance(outcome.result, ImageError):
                said.append(str(outcome.result))
            else:
                number, revision = next(rows)
                said.append(number)
        assert next(rows, None) is None
        return int(revision), said


async def settle() -> None:
    """Let everything that can go on without a thread go on."""
    for _ in range(6):
        await asyncio.sleep(0)


class AnyInterleaving(RuleBasedStateMachine):
    """Callers come, give up and are answered, images end well or badly, heads are swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.scheduler = Scheduler(cores=2)
        self.backbone = FakeBackbone()
        self.head = FakeHead(1)
        self.next = 0
        self.jobs: list[FakeJob] = []
        self.callers: list[asyncio.Task[Said]] = []
        self.given_up: set[int] = set()
        self.left_in_time: set[int] = set()
        self.failed: set[int] = set()

    @rule(bad=st.lists(st.booleans(), min_size=1, max_size=4), deadline=st.integers(0, 3))
    def come(self, bad: list[bool], deadline: int) -> None:
        """Let a caller come, some with images that cannot be decoded."""
        numbers = [-1 if one else self.next + index for index, one in enumerate(bad)]
        self.next += len(numbers)
        job = FakeJob(numbers, self.backbone, self.head)
        self.jobs.append(job)
        run = self.scheduler.run(job, deadline=deadline, flow=Flow())
        self.callers.append(self.loop.create_task(run))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """Let a caller give up, wherever its images are; the event loop notices at once."""
        caller = data.draw(st.integers(0, len(self.callers) - 1))
        if self.callers[caller].cancel():
            self.given_up.add(caller)
            self.go_on()
            taken = set(self.backbone.taken)
            self.left_in_time.update(set(self.jobs[caller].numbers) - taken)

    @rule(broken=st.sampled_from([False, False, True]))
    def swap(self, broken: bool) -> None:
        """Let another revision serve those who come from now on."""
        self.head = FakeHead(self.head.revision + 1, broken=broken)

    @rule()
    def step(self) -> None:
        """Let a thread take what is next."""
        self.scheduler._step()

    @precondition(lambda self: self.backbone.pending)
    @rule(data=st.data(), fail=st.sampled_from([False, False, False, True]))
    def deliver(self, data: st.DataObject, fail: bool) -> None:
        """Let any of the images end."""
        index = data.draw(st.integers(0, len(self.backbone.pending) - 1))
        if fail:
            self.failed.add(self.backbone.pending[index][0])
        self.backbone.finish(index, fail=fail)

    @rule()
    def go_on(self) -> None:
        """Let the event loop work."""
        self.loop.run_until_complete(settle())

    @invariant()
    def nothing_for_those_who_left(self) -> None:
        """Never embed an image whose caller gave up before, nor one twice."""
        assert not self.left_in_time.intersection(self.backbone.taken)
        assert len(self.backbone.taken) == len(set(self.backbone.taken))

    def teardown(self) -> None:
        """Let everything end: everybody has what is theirs, and nothing is left."""
        try:
            self.go_on()
            while self.scheduler._step() or self.backbone.pending:
                while self.backbone.pending:
                    self.backbone.finish()
            self.go_on()
            for caller in range(len(self.callers)):
                self.check(caller)
            assert self.scheduler._at_work == 0
            assert not self.scheduler._runs
            assert not len(self.scheduler._queue)
        finally:
            self.loop.close()
        assert not self.complaints

    def check(self, caller: int) -> None:
        """Assert that a caller has its own answer, its own cancellation or its own error."""
        task, job = self.callers[caller], self.jobs[caller]
        assert task.done(), f"caller {caller} waits for ever"
        if task.cancelled():
            assert caller in self.given_up
        elif isinstance(error := task.exception(), BackboneError):
            assert error.args[0] in self.failed.intersection(job.numbers)
        elif error is not None:
            assert isinstance(error, HeadError)
            assert job.head.broken
        else:
            said = [f"image {one}" if one < 0 else float(one) for one in job.numbers]
            assert task.result() == (job.head.revision, said)


@pytest.mark.slow
def test_everybody_gets_their_own_answer_and_nobody_waits_for_ever() -> None:
    """Every caller gets its own answer, its own cancellation or the error of its own images."""
    run_state_machine_as_test(
        AnyInterleaving,
        settings=settings(max_examples=400, stateful_step_count=40),
    )


class Noisy:
    """A backbone that embeds at once, in the thread or in another, and fails now and then."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    @property
    def info(self) -> BackboneInfo:
        """What every backbone has."""
        return INFO

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """Deliver here or elsewhere, now or soon."""
        assert present > 0
        number = int(pixels.view(np.uint64)[0])
        said = BackboneError(number) if number % 97 == 0 else embedded(number)
        if self._random.random() < 0.5:
            deliver(said)
        else:
            threading.Timer(self._random.random() / 1000, deliver, [said]).start()


def test_real_threads_answer_thousands_of_callers_rightly() -> None:
    """With threads, cancels, deadlines and failures: each answer is its caller's, none is lost."""
    chance = random.Random(1)
    backbone = Noisy(2)
    heads = [FakeHead(revision) for revision in range(1, 5)]
    counts = {"answers": 0, "cancels": 0, "failures": 0}

    async def caller(scheduler: Scheduler, first: int) -> None:
        numbers = [
            -1 if chance.random() < 0.1 else first + index
            for index in range(chance.choice((1, 1, 1, 3, 9)))
        ]
        job = FakeJob(numbers, backbone, chance.choice(heads))
        try:
            async with asyncio.timeout(chance.choice((None, None, 0.0, 0.001))):
                answer = await scheduler.run(job, deadline=chance.random(), flow=Flow())
        except TimeoutError:
            counts["cancels"] += 1
        except BackboneError as error:
            counts["failures"] += error.args[0] in numbers
        else:
            said = [f"image {one}" if one < 0 else float(one) for one in numbers]
            assert answer == (job.head.revision, said)
            counts["answers"] += 1

    async def scenario() -> None:
        scheduler = Scheduler(cores=3)
        scheduler.start()
        for wave in range(30):
            callers = [caller(scheduler, 1000 * wave + 10 * one) for one in range(100)]
            async with asyncio.timeout(60):
                await asyncio.gather(*callers)
        scheduler.close()

    asyncio.run(scenario())
    assert sum(counts.values()) == 3000
    assert min(counts.values()) > 10


class Desk:
    """A scheduler whose only thread is the test."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(cores=2)
        self.backbone = FakeBackbone()
        self.head = FakeHead(1)

    def ask(self, *numbers: int) -> asyncio.Task[Said]:
        """Let a caller come."""
        job = FakeJob(list(numbers), self.backbone, self.head)
        return asyncio.create_task(self.scheduler.run(job, deadline=1.0, flow=Flow()))

    def step(self) -> bool:
        """Do what is next, to its end; return whether there was anything."""
        found = self.scheduler._step()
        while self.backbone.pending:
            self.backbone.finish()
        return found


def test_answers_are_made_in_groups_while_others_wait() -> None:
    """Behind a long queue several answers are made with one run of the head, so in fewer steps."""

    async def scenario() -> None:
        desk = Desk()
        tasks = [desk.ask(number) for number in range(100)]
        await settle()
        steps = 0
        while desk.step():
            steps += 1
        await asyncio.gather(*tasks)
        assert [task.result() for task in tasks] == [(1, [float(one)]) for one in range(100)]
        assert desk.head.rows == LARGEST_GROUP
        assert steps < 100 + 30

    asyncio.run(scenario())


def test_the_answer_of_a_lone_image_is_made_at_once() -> None:
    """Where nothing waits, no answer does: one step for the image, one for its answer."""

    async def scenario() -> None:
        desk = Desk()
        task = desk.ask(7)
        await settle()
        assert [desk.step(), desk.step(), desk.step()] == [True, True, False]
        assert await task == (1, [7.0])

    asyncio.run(scenario())


def test_no_answer_waits_behind_a_large_request() -> None:
    """A lone image beside a request of 256 is answered when it is embedded."""

    async def scenario() -> None:
        desk = Desk()
        large, lone = desk.ask(*range(256)), desk.ask(999)
        await settle()
        for _ in range(4):
            assert desk.step()
        await settle()
        assert lone.done()
        assert not large.done()
        large.cancel()

    asyncio.run(scenario())


def test_an_answer_waits_for_a_few_images_at_most() -> None:
    """Behind many large requests an answer waits until a few of their images have ended."""

    async def scenario() -> None:
        desk = Desk()
        tasks = [desk.ask(*range(100 * one, 100 * one + 50)) for one in range(64)]
        lone = desk.ask(99_999)
        await settle()
        for _ in range(65 + LARGEST_GROUP):
            desk.step()
        await settle()
        assert lone.done()
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())


def test_the_backbone_is_told_how_many_images_are_present() -> None:
    """A lone image is told to be alone; of three the first is told of three."""

    async def scenario() -> None:
        desk = Desk()
        for numbers in ((1,), (2, 3, 4)):
            task = desk.ask(*numbers)
            await settle()
            while desk.step():
                pass
            await task
        assert desk.backbone.presents == [1, 3, 2, 1]

    asyncio.run(scenario())


def test_who_goes_during_decoding_costs_no_embedding() -> None:
    """An image whose caller goes while it is decoded never comes to the backbone."""

    async def scenario() -> None:
        desk = Desk()
        task = desk.ask(1)
        await settle()
        (run,) = desk.scheduler._runs
        decode = run.job.decode

        def decode_meanwhile(index: int) -> Pixels:
            desk.scheduler._leave(run)
            return decode(index)

        run.job.decode = decode_meanwhile  # type: ignore[method-assign]  # the fake is ours
        task.cancel()
        assert desk.step()
        assert desk.backbone.taken == []
        assert not desk.step()

    asyncio.run(scenario())


def test_close_leaves_nobody_waiting() -> None:
    """Who still waits when the scheduler is closed is told so; who comes later too."""

    async def scenario() -> None:
        desk = Desk()
        waiting, at_work = desk.ask(1), desk.ask(2)
        await settle()
        desk.scheduler._step()
        desk.scheduler.close()
        for task in (waiting, at_work, desk.ask(3)):
            with pytest.raises(Unavailable):
                await task
        desk.backbone.finish()

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", [True, False])
def test_close_waits_for_the_images_at_work(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """When it returns no thread can come back from native code any more, but one that hangs."""
    monkeypatch.setattr(scheduler_module, "JOIN_SECONDS", 30.0 if ends else 0.05)

    async def scenario() -> None:
        begun, go_on = threading.Event(), threading.Event()
        scheduler = Scheduler(cores=1)
        job = FakeJob([1, 2, 3], FakeBackbone(), FakeHead(1))

        def decode(_: int) -> Pixels:
            begun.set()
            go_on.wait()
            raise ImageError("late")

        monkeypatch.setattr(job, "decode", decode)
        scheduler.start()
        task = asyncio.create_task(scheduler.run(job, deadline=1.0, flow=Flow()))
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


def test_a_new_job_is_expected_to_end_after_what_goes_before() -> None:
    """The expected time grows with what waits, but for a lone image only with its own turn."""

    async def scenario() -> None:
        desk = Desk()
        alone = desk.scheduler.expected_seconds(1)
        assert alone > 0
        task = desk.ask(*range(100))
        await settle()
        assert desk.scheduler.expected_seconds(1) == pytest.approx(2 * alone)
        assert desk.scheduler.expected_seconds(100) == pytest.approx(200 * alone)
        task.cancel()
        await settle()
        assert desk.scheduler.expected_seconds(100) == pytest.approx(100 * alone)

    asyncio.run(scenario())


@pytest.mark.parametrize("nice", [0, 10])
def test_threads_give_way_however_nice_the_process_is(nice: int) -> None:
    """Threads are NICE nicer than their process. Only root may be less nice: others' would die."""
    expected = min(os.nice(0) + nice + NICE, 19)
    code = """
import os, sys, threading, time
from topwork.serving.scheduler import Scheduler
nice, expected = map(int, sys.argv[1:])
os.nice(nice)
scheduler = Scheduler(cores=1)
scheduler.start()
(thread,) = (one for one in threading.enumerate() if one.name == "classify-0")
end = time.monotonic() + 60
while os.getpriority(os.PRIO_PROCESS, thread.native_id) != expected:
    assert time.monotonic() < end
    time.sleep(0.001)
"""
    subprocess.run([sys.executable, "-c", code, str(nice), str(expected)], check=True)
