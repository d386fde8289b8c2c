"""The batcher gives every caller its own answer, whatever happens to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from topwork.bundle.image import Pixels
from topwork.engine.serving.batcher import Batcher, Embedded

T = TypeVar("T")


def picture(number: int) -> Pixels:
    """Return pixels that bear ``number``."""
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 0, :2] = divmod(number, 256)
    return pixels


def numbers(batch: NDArray[np.uint8]) -> list[int]:
    """Return the numbers that the pixels of a micro-batch bear."""
    return [256 * int(high) + int(low) for high, low in batch[:, 0, 0, :2]]


def embed(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return embeddings that bear the same numbers."""
    return np.array([[number, -number] for number in numbers(batch)], dtype=np.float32)


class BackboneError(Exception):
    """What the fake backbone raises, with the numbers of its micro-batch."""


class StepExecutor(Executor):
    """Runs what it is given at once and tells of it when the test says so, in any order."""

    def __init__(self) -> None:
        self.running: list[Callable[[], None]] = []
        self.closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``fn``; its future is resolved by the callable that is added to ``running``."""
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future()
        assert future.set_running_or_notify_cancel()
        tell: Callable[[], None]
        try:
            value = fn(*args, **kwargs)
        except Exception as error:
            raised = error
            tell = partial(future.set_exception, raised)
        else:
            tell = partial(future.set_result, value)
        self.running.append(tell)
        return future

    def finish(self, index: int = 0) -> None:
        """End one of the runs."""
        self.running.pop(index)()


async def settle() -> None:
    """Let everything that can go on without a runner go on."""
    for _ in range(10):
        await asyncio.sleep(0)


class AnyInterleaving(RuleBasedStateMachine):
    """Callers come, give up and are answered, runs end well or badly: in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.executor = StepExecutor()
        self.callers: list[asyncio.Task[Embedded]] = []
        self.bad: set[int] = set()
        self.given_up: set[int] = set()
        self.left_in_time: set[int] = set()
        self.batches: list[list[int]] = []

    @initialize(runners=st.integers(1, 3), max_batch=st.integers(1, 4))
    def make(self, runners: int, max_batch: int) -> None:
        """Begin with an idle batcher."""
        self.runners, self.max_batch = runners, max_batch
        self.batcher = Batcher(self.embed, self.executor, runners=runners, max_batch=max_batch)

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Be the backbone: fail for any micro-batch with a bad image."""
        found = numbers(batch)
        self.batches.append(found)
        if self.bad.intersection(found):
            raise BackboneError(*found)
        return embed(batch)

    @rule(bad=st.sampled_from([False, False, False, True]))
    def submit(self, bad: bool) -> None:
        """Let a caller come, some of them with an image that the backbone fails on."""
        number = len(self.callers)
        if bad:
            self.bad.add(number)
        self.callers.append(self.loop.create_task(self.batcher.submit(picture(number))))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """Let a caller give up, wherever its image is."""
        number = data.draw(st.integers(0, len(self.callers) - 1))
        if self.callers[number].cancel():
            self.given_up.add(number)
            if number not in self.computed:
                self.left_in_time.add(number)

    @precondition(lambda self: self.executor.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Let any of the runs end."""
        self.executor.finish(data.draw(st.integers(0, len(self.executor.running) - 1)))

    @rule()
    def go_on(self) -> None:
        """Let the event loop work."""
        self.loop.run_until_complete(settle())

    @invariant()
    def within_bounds(self) -> None:
        """Never more runs at once than runners, nor more images in one than fit."""
        assert len(self.executor.running) <= self.runners
        assert all(1 <= len(batch) <= self.max_batch for batch in self.batches)

    @invariant()
    def nothing_for_those_who_left(self) -> None:
        """Never compute an image whose caller gave up before."""
        assert not self.left_in_time.intersection(self.computed)

    @property
    def computed(self) -> list[int]:
        """All images that reached the backbone."""
        return [one for batch in self.batches for one in batch]

    def teardown(self) -> None:
        """Let all runs end: everybody has what is theirs, and the batcher serves on."""
        try:
            if hasattr(self, "batcher"):
                self.check_answers()
                self.check_runners()
        finally:
            self.loop.close()
        assert not self.complaints

    def check_answers(self) -> None:
        """Everybody has an answer, and it is theirs."""
        self.drain()
        assert len(self.computed) == len(set(self.computed)), "an image was computed twice"
        batch_of = {one: batch for batch in self.batches for one in batch}
        for number, caller in enumerate(self.callers):
            assert caller.done(), f"caller {number} waits for ever"
            if caller.cancelled():
                assert number in self.given_up
            elif (error := caller.exception()) is not None:
                assert isinstance(error, BackboneError)
                assert error.args == tuple(batch_of[number])
                assert self.bad.intersection(batch_of[number])
            else:
                assert caller.result().embedding.tolist() == [number, -number]

    def check_runners(self) -> None:
        """As many runs as runners are possible at once, as at the start."""
        self.bad.clear()
        fresh = range(len(self.callers), len(self.callers) + self.runners)
        tasks = [self.loop.create_task(self.batcher.submit(picture(one))) for one in fresh]
        self.loop.run_until_complete(settle())
        assert len(self.executor.running) == self.runners, "a runner was lost"
        self.drain()
        assert [int(task.result().embedding[0]) for task in tasks] == list(fresh)

    def drain(self) -> None:
        """End all runs, and those that they make room for."""
        self.loop.run_until_complete(settle())
        while self.executor.running:
            self.executor.finish()
            self.loop.run_until_complete(settle())


def test_everybody_gets_their_own_answer_and_nobody_waits_for_ever() -> None:
    """Every caller gets its own answer, its own cancellation or the error of its own run."""
    run_state_machine_as_test(
        AnyInterleaving,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )


def test_a_lone_image_does_not_wait_for_company() -> None:
    """An idle batcher runs an image at once, however many would fit."""

    async def scenario() -> int:
        executor = StepExecutor()
        batcher = Batcher(embed, executor, runners=1, max_batch=32)
        task = asyncio.create_task(batcher.submit(picture(7)))
        await settle()
        executor.finish()
        return int((await task).embedding[0])

    assert asyncio.run(scenario()) == 7


def test_those_who_wait_share_the_next_run() -> None:
    """Images that came while the runner was busy go together, in the order of their arrival."""
    batches: list[list[int]] = []

    def recorded(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        batches.append(numbers(batch))
        return embed(batch)

    async def scenario() -> None:
        executor = StepExecutor()
        batcher = Batcher(recorded, executor, runners=1, max_batch=4)
        tasks = [asyncio.create_task(batcher.submit(picture(one))) for one in range(7)]
        await settle()
        while executor.running:
            executor.finish()
            await settle()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_backbone_that_loses_rows_fails_its_callers(rows: int) -> None:
    """A run that does not give one row an image is an error for its callers, and theirs alone."""

    def faulty(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        right = embed(batch)
        return right if numbers(batch) != [1, 2] else np.resize(right, (rows, 2))

    async def scenario() -> list[str]:
        executor = StepExecutor()
        batcher = Batcher(faulty, executor, runners=1, max_batch=2)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        tasks = [asyncio.create_task(batcher.submit(picture(one))) for one in range(4)]
        await settle()
        while executor.running:
            executor.finish()
            await settle()
        return await ends(tasks)

    assert asyncio.run(scenario()) == ["answer", "error", "error", "answer"]


def test_a_closed_executor_leaves_nobody_waiting() -> None:
    """When the runners' threads are closed, those who still wait get an error."""

    async def scenario() -> list[str]:
        executor = StepExecutor()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        batcher = Batcher(embed, executor, runners=1, max_batch=1)
        tasks = [asyncio.create_task(batcher.submit(picture(one))) for one in range(3)]
        await settle()
        executor.closed = True
        executor.finish()
        await settle()
        return await ends(tasks)

    assert asyncio.run(scenario()) == ["answer", "error", "error"]


async def ends(tasks: list[asyncio.Task[Embedded]]) -> list[str]:
    """Return what became of settled tasks; those that still wait are cancelled."""
    waiting = [task for task in tasks if not task.done()]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [
        "waits"
        if task in waiting
        else "error"
        if task.cancelled() or task.exception()
        else "answer"
        for task in tasks
    ]
