"""Micro-batches: each image gets its own result, and no image waits for a batch to fill."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from topwork.errors import Unavailable
from topwork.inputs.image import Pixels
from topwork.serving.encoders import microbatch
from topwork.serving.encoders.backbone import Embedded
from topwork.serving.encoders.microbatch import MicroBatcher

SIZES = (1, 2, 4)
SHAPE = (2, 2, 3)
Answer = Embedded | Exception


def picture(number: int) -> Pixels:
    """Return pixels that encode ``number``, in every two bytes."""
    return np.array([*divmod(number, 256)] * 6, dtype=np.uint8).reshape(SHAPE)


def numbers(batch: NDArray[np.uint8]) -> list[int]:
    """Return the numbers that the pixels of a micro-batch encode."""
    return [256 * int(high) + int(low) for high, low in batch[:, 0, 0, :2]]


def embed(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return embeddings of the encoded numbers."""
    return np.array([[number, -number] for number in numbers(batch)], dtype=np.float32)


def new_batcher(run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> MicroBatcher:
    """Return a batcher that is not started."""
    first, second = (np.zeros((SIZES[-1], *SHAPE), dtype=np.uint8) for _ in range(2))
    return MicroBatcher(run, (first, second), SIZES)


def ask(batcher: MicroBatcher, number: int) -> Future[Embedded]:
    """Put an image and return a future of its embedding."""
    future: Future[Embedded] = Future()
    batcher.put(picture(number), partial(resolve, future))
    return future


def resolve(future: Future[Embedded], answer: Answer) -> None:
    """Set the result of a future."""
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def images_of_run(answer: Embedded) -> int:
    """Return the number of images in the run of an image."""
    assert answer.run is not None
    return answer.run.images


class BackboneError(Exception):
    """Error of a fake backbone, with the numbers of its micro-batch."""


class Steps:
    """Backbone whose runs end when the test decides."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[list[int]] = SimpleQueue()
        self.may_end: SimpleQueue[Exception | None] = SimpleQueue()
        for _ in SIZES:
            self.may_end.put(None)  # for the warm-up

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed when the test allows it."""
        self.begun.put(numbers(batch))
        failure = self.may_end.get(timeout=30)
        if failure is not None:
            raise failure
        return embed(batch)

    def next(self) -> list[int]:
        """Return the numbers in the next run when it has started."""
        return self.begun.get(timeout=30)

    def started(self) -> MicroBatcher:
        """Return a warmed-up batcher with this backbone."""
        made = new_batcher(self)
        made.start()
        for _ in SIZES:
            self.next()
        return made


@pytest.mark.slow
@settings(max_examples=60)
@given(
    callers=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    bad=st.sets(st.integers(0, 95), max_size=4),
    short=st.sets(st.integers(0, 95), max_size=2),
    closes_after=st.none() | st.integers(0, 60),
)
def test_every_image_gets_one_result(
    callers: list[int], bad: set[int], short: set[int], closes_after: int | None
) -> None:
    """With threads, failing runs and a close() at any time, each image gets its own result once."""
    batches: list[list[int]] = []

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = numbers(batch)
        batches.append(found)
        result = embed(batch)
        assert numbers(batch) == found, "an image was put into a buffer that is at work"
        if bad.intersection(found):
            raise BackboneError(*found)
        return result[:-1] if short.intersection(found) else result

    batcher = new_batcher(run)
    batcher.start()
    batches.clear()
    starts = np.cumsum([0, *callers])
    answers: list[list[Answer]] = [[] for _ in range(starts[-1])]
    put = threading.Semaphore(0)

    def call(caller: int) -> None:
        for number in range(starts[caller], starts[caller + 1]):
            # Numbers from 200 differ from the zeros of the padding.
            batcher.put(picture(200 + number), answers[number].append)
            put.release()

    def close() -> None:
        for _ in range(min(closes_after or 0, len(answers))):
            put.acquire()
        batcher.close()

    bad, short = ({200 + number for number in numbers_} for numbers_ in (bad, short))
    with ThreadPoolExecutor(len(callers) + 1) as pool:
        calls = [pool.submit(call, caller) for caller in range(len(callers))]
        if closes_after is not None:
            calls.append(pool.submit(close))
    for done in calls:
        done.result()
    batcher.close()
    for number, results in enumerate(answers, start=200):
        (answer,) = results
        if isinstance(answer, Embedded):
            assert answer.embedding.tolist() == [number, -number]
            assert 1 <= images_of_run(answer) <= SIZES[-1]
        elif isinstance(answer, BackboneError):
            assert number in answer.args
            assert bad.intersection(answer.args)
        elif isinstance(answer, Unavailable):
            assert closes_after is not None
        else:
            assert isinstance(answer, ValueError)
            assert "rows" in str(answer)
    assert {len(batch) for batch in batches} <= set(SIZES)


def test_single_image_runs_at_once() -> None:
    """An idle batcher runs a single image alone, also after a load."""
    steps = Steps()
    batcher = steps.started()
    futures = [ask(batcher, 7)]
    assert steps.next() == [7]
    futures += [ask(batcher, number) for number in (8, 9, 10)]
    steps.may_end.put(None)
    assert len(steps.next()) == 4
    steps.may_end.put(None)
    for future in futures:
        future.result(timeout=30)
    last = ask(batcher, 11)
    assert steps.next() == [11]
    steps.may_end.put(None)
    assert images_of_run(last.result(timeout=30)) == 1
    batcher.close()


def test_images_that_arrive_during_a_run_share_the_next_run() -> None:
    """They run in order, padded to the next size, and share the time of the run."""
    steps = Steps()
    batcher = steps.started()
    futures = [ask(batcher, 1)]
    assert steps.next() == [1]
    futures += [ask(batcher, number) for number in (2, 3, 4)]
    steps.may_end.put(None)
    found = steps.next()
    assert found[:3] == [2, 3, 4]
    assert len(found) == 4
    steps.may_end.put(None)
    answers = [future.result(timeout=30) for future in futures]
    assert [int(answer.embedding[0]) for answer in answers] == [1, 2, 3, 4]
    assert [images_of_run(answer) for answer in answers] == [1, 3, 3, 3]
    assert len({answer.run for answer in answers[1:]}) == 1
    assert len({answer.computed for answer in answers[1:]}) == 1
    assert all(answer.waited >= 0 and answer.computed >= 0 for answer in answers)
    batcher.close()


class SignallingCondition(threading.Condition):
    """Condition that signals when a thread waits for it."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.waits: SimpleQueue[None] = SimpleQueue()

    def wait(self, timeout: float | None = None) -> bool:
        """Signal, then wait."""
        self.waits.put(None)
        return super().wait(timeout)


def full_batcher(
    steps: Steps,
) -> tuple[MicroBatcher, list[Future[Embedded]], Future[Future[Embedded]]]:
    """Return a batcher that runs 0, with 1 to 4 in the other buffer and a blocked put of 5."""
    batcher = steps.started()
    capacity = batcher._capacity = SignallingCondition(batcher._lock)
    futures = [ask(batcher, 0)]
    assert steps.next() == [0]
    futures += [ask(batcher, number) for number in (1, 2, 3, 4)]
    blocked: Future[Future[Embedded]] = Future()
    threading.Thread(target=lambda: blocked.set_result(ask(batcher, 5)), daemon=True).start()
    capacity.waits.get(timeout=30)
    return batcher, futures, blocked


def test_put_blocks_while_both_buffers_are_full() -> None:
    """A blocked put continues after the current run; its image is in the run after the next."""
    steps = Steps()
    batcher, futures, blocked = full_batcher(steps)
    assert not blocked.done()
    steps.may_end.put(None)
    assert steps.next() == [1, 2, 3, 4]
    futures.append(blocked.result(timeout=30))
    steps.may_end.put(None)
    assert steps.next() == [5]
    steps.may_end.put(None)
    assert [future.result(timeout=30).embedding[0] for future in futures] == [0, 1, 2, 3, 4, 5]
    batcher.close()


def test_close_finishes_accepted_images() -> None:
    """Images in buffers are embedded; blocked and later images are Unavailable."""
    steps = Steps()
    batcher, futures, blocked = full_batcher(steps)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    refused = blocked.result(timeout=30)  # during the current run
    with pytest.raises(Unavailable):
        refused.result(timeout=30)
    for _ in range(2):
        steps.may_end.put(None)
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert [future.result(timeout=0).embedding[0] for future in futures] == [0, 1, 2, 3, 4]
    with pytest.raises(Unavailable):
        ask(batcher, 6).result(timeout=0)


class SlowBuffer(np.ndarray[tuple[int, ...], np.dtype[np.uint8]]):
    """Buffer that copies rows when the test allows it."""

    may_copy: threading.Event

    def __array_finalize__(self, made_of: object) -> None:
        """See NumPy."""
        if isinstance(made_of, SlowBuffer):
            self.may_copy = made_of.may_copy

    def __setitem__(self, row: Any, pixels: Any) -> None:
        """Copy a row when the test allows it."""
        assert self.may_copy.wait(30), "the test forgot to let rows be copied"
        super().__setitem__(row, pixels)


def test_run_waits_until_its_rows_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is reserved but not written is not run."""
    looked = threading.Event()
    may_copy = threading.Event()
    buffers = [np.zeros((SIZES[-1], *SHAPE), dtype=np.uint8).view(SlowBuffer) for _ in range(2)]
    for buffer in buffers:
        buffer.may_copy = may_copy
    ran: list[int] = []

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        ran.append(len(batch))
        if len(ran) > len(SIZES):  # after the warm-up
            looked.set()
        return embed(batch)

    batcher = MicroBatcher(run, (buffers[0], buffers[1]), SIZES)
    wait_for = batcher._written.wait_for

    def waiting(condition: Callable[[], bool]) -> bool:
        looked.set()
        return bool(wait_for(condition))

    monkeypatch.setattr(batcher._written, "wait_for", waiting)
    batcher.start()
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(lambda: ask(batcher, 7).result(timeout=30))
        assert looked.wait(30)  # the new_batcher has the image, and its pixels are not there yet
        may_copy.set()
        assert answer.result(timeout=30).embedding[0] == 7
    batcher.close()


def test_close_does_not_wait_for_a_hanging_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """close() returns after JOIN_SECONDS although a run hangs."""
    monkeypatch.setattr(microbatch, "JOIN_SECONDS", 0.05)
    steps = Steps()
    batcher = steps.started()
    waiting = ask(batcher, 1)
    steps.next()
    batcher.close()
    assert not waiting.done()
    steps.may_end.put(None)
    assert waiting.result(timeout=30).embedding[0] == 1


def test_failed_run_fails_only_its_images() -> None:
    """The error of a run goes to its images; the next run is not affected."""
    steps = Steps()
    batcher = steps.started()
    first = ask(batcher, 1)
    steps.next()
    steps.may_end.put(BackboneError("out of memory"))
    with pytest.raises(BackboneError, match="out of memory"):
        first.result(timeout=30)
    second = ask(batcher, 2)
    steps.may_end.put(None)
    assert second.result(timeout=30).embedding[0] == 2
    batcher.close()


def test_raising_callback_does_not_affect_other_images() -> None:
    """Other images of the micro-batch, and later images, get their results."""
    steps = Steps()
    batcher = steps.started()
    first = ask(batcher, 1)
    steps.next()

    def break_down(_: Answer) -> None:
        raise RuntimeError("a bug of the caller's")

    batcher.put(picture(2), break_down)
    third = ask(batcher, 3)
    for _ in range(2):
        steps.may_end.put(None)
    assert first.result(timeout=30).embedding[0] == 1
    assert third.result(timeout=30).embedding[0] == 3
    batcher.close()


@pytest.mark.parametrize(
    "wrong",
    [picture(1)[:1], picture(1)[:, :, :1], picture(1).astype(np.float32)],
    ids=["a row", "grey", "floats"],
)
def test_pixels_of_another_shape_or_type_are_refused(wrong: Pixels) -> None:
    """They are a ValueError with the expected shape; nothing is broadcast or cast."""
    batcher = new_batcher(embed)
    answers: list[Answer] = []
    batcher.put(wrong, answers.append)
    (answer,) = answers
    assert isinstance(answer, ValueError)
    assert "(2, 2, 3)" in str(answer)


def test_start_warms_up_every_size_largest_first() -> None:
    """start() returns after one run of every size, in the thread that serves."""
    seen: list[tuple[int, str]] = []

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append((len(batch), threading.current_thread().name))
        return embed(batch)

    batcher = new_batcher(run)
    batcher.start()
    assert seen == [(size, "micro-batches") for size in (4, 1, 2)]
    batcher.close()


def test_start_raises_the_error_of_the_warm_up() -> None:
    """start() raises the error of a run, such as a lack of memory."""

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise BackboneError(len(batch))

    with pytest.raises(BackboneError, match="4"):
        new_batcher(run).start()
