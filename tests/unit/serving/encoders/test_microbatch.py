"""Everybody gets one answer and their own, and no image waits for company."""

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
    """Return pixels that bear ``number``, in every two bytes."""
    return np.array([*divmod(number, 256)] * 6, dtype=np.uint8).reshape(SHAPE)


def numbers(batch: NDArray[np.uint8]) -> list[int]:
    """Return the numbers that the pixels of a micro-batch bear."""
    return [256 * int(high) + int(low) for high, low in batch[:, 0, 0, :2]]


def embed(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return embeddings that bear the same numbers."""
    return np.array([[number, -number] for number in numbers(batch)], dtype=np.float32)


def batcher(run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> MicroBatcher:
    """Return a batcher that is not started yet."""
    first, second = (np.zeros((SIZES[-1], *SHAPE), dtype=np.uint8) for _ in range(2))
    return MicroBatcher(run, (first, second), SIZES)


def ask(one: MicroBatcher, number: int) -> Future[Embedded]:
    """Put an image and return what its answer will be in."""
    future: Future[Embedded] = Future()
    one.put(picture(number), partial(resolve, future))
    return future


def resolve(future: Future[Embedded], answer: Answer) -> None:
    """Put an answer into a future."""
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class BackboneError(Exception):
    """What a fake backbone raises, with the numbers of its micro-batch."""


class Steps:
    """A backbone whose runs end when the test says so."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[list[int]] = SimpleQueue()
        self.may_end: SimpleQueue[Exception | None] = SimpleQueue()
        for _ in SIZES:
            self.may_end.put(None)  # the warming

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed, once the test lets it end."""
        self.begun.put(numbers(batch))
        failure = self.may_end.get(timeout=30)
        if failure is not None:
            raise failure
        return embed(batch)

    def next(self) -> list[int]:
        """Return the numbers in the next run, as soon as it has begun."""
        return self.begun.get(timeout=30)

    def started(self) -> MicroBatcher:
        """Return a batcher over this, warmed."""
        made = batcher(self)
        made.start()
        for _ in SIZES:
            self.next()
        return made


@settings(max_examples=60)
@given(
    callers=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    bad=st.sets(st.integers(0, 95), max_size=4),
    short=st.sets(st.integers(0, 95), max_size=2),
    closes_after=st.none() | st.integers(0, 60),
)
def test_everybody_gets_one_answer_and_their_own(
    callers: list[int], bad: set[int], short: set[int], closes_after: int | None
) -> None:
    """With many threads, runs that fail and a close at any time: one answer each, and the right."""
    batches: list[list[int]] = []

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = numbers(batch)
        batches.append(found)
        result = embed(batch)
        assert numbers(batch) == found, "an image was put into a buffer that is at work"
        if bad.intersection(found):
            raise BackboneError(*found)
        return result[:-1] if short.intersection(found) else result

    one = batcher(run)
    one.start()
    batches.clear()
    starts = np.cumsum([0, *callers])
    answers: list[list[Answer]] = [[] for _ in range(starts[-1])]
    put = threading.Semaphore(0)

    def call(caller: int) -> None:
        for number in range(starts[caller], starts[caller + 1]):
            # 200 and more: the zeros of the padding are nobody's number
            one.put(picture(200 + number), answers[number].append)
            put.release()

    def close() -> None:
        for _ in range(min(closes_after or 0, len(answers))):
            put.acquire()
        one.close()

    bad, short = ({200 + number for number in numbers_} for numbers_ in (bad, short))
    with ThreadPoolExecutor(len(callers) + 1) as pool:
        calls = [pool.submit(call, caller) for caller in range(len(callers))]
        if closes_after is not None:
            calls.append(pool.submit(close))
    for done in calls:
        done.result()
    one.close()
    for number, given_ in enumerate(answers, start=200):
        (answer,) = given_
        if isinstance(answer, Embedded):
            assert answer.embedding.tolist() == [number, -number]
            assert 1 <= answer.micro_batch <= SIZES[-1]
        elif isinstance(answer, BackboneError):
            assert number in answer.args
            assert bad.intersection(answer.args)
        elif isinstance(answer, Unavailable):
            assert closes_after is not None
        else:
            assert isinstance(answer, ValueError)
            assert "rows" in str(answer)
    assert {len(batch) for batch in batches} <= set(SIZES)


def test_a_lone_image_goes_at_once() -> None:
    """An idle batcher runs one image alone, also right after load."""
    steps = Steps()
    one = steps.started()
    futures = [ask(one, 7)]
    assert steps.next() == [7]
    futures += [ask(one, number) for number in (8, 9, 10)]
    steps.may_end.put(None)
    assert len(steps.next()) == 4
    steps.may_end.put(None)
    for future in futures:
        future.result(timeout=30)
    last = ask(one, 11)
    assert steps.next() == [11]
    steps.may_end.put(None)
    assert last.result(timeout=30).micro_batch == 1
    one.close()


def test_those_who_came_meanwhile_share_the_next_run() -> None:
    """They go together, in order, padded to the next size; each is told its share of the time."""
    steps = Steps()
    one = steps.started()
    futures = [ask(one, 1)]
    assert steps.next() == [1]
    futures += [ask(one, number) for number in (2, 3, 4)]
    steps.may_end.put(None)
    found = steps.next()
    assert found[:3] == [2, 3, 4]
    assert len(found) == 4
    steps.may_end.put(None)
    answers = [future.result(timeout=30) for future in futures]
    assert [int(answer.embedding[0]) for answer in answers] == [1, 2, 3, 4]
    assert [answer.micro_batch for answer in answers] == [1, 3, 3, 3]
    assert len({answer.computed for answer in answers[1:]}) == 1
    assert all(answer.waited >= 0 and answer.computed >= 0 for answer in answers)
    one.close()


class NotedWaits(threading.Condition):
    """A condition that says when a thread waits for it."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.waits: SimpleQueue[None] = SimpleQueue()

    def wait(self, timeout: float | None = None) -> bool:
        """Say so and wait."""
        self.waits.put(None)
        return super().wait(timeout)


def overfull(steps: Steps) -> tuple[MicroBatcher, list[Future[Embedded]], Future[Future[Embedded]]]:
    """Return a batcher at work on 0, with 1 to 4 in its other buffer and 5 blocked before it."""
    one = steps.started()
    room = one._room = NotedWaits(one._lock)
    futures = [ask(one, 0)]
    assert steps.next() == [0]
    futures += [ask(one, number) for number in (1, 2, 3, 4)]
    blocked: Future[Future[Embedded]] = Future()
    threading.Thread(target=lambda: blocked.set_result(ask(one, 5)), daemon=True).start()
    room.waits.get(timeout=30)
    return one, futures, blocked


def test_who_finds_both_buffers_full_waits_for_room() -> None:
    """A put blocks until the run at work has ended, and goes with the run after the next."""
    steps = Steps()
    one, futures, blocked = overfull(steps)
    assert not blocked.done()
    steps.may_end.put(None)
    assert steps.next() == [1, 2, 3, 4]
    futures.append(blocked.result(timeout=30))
    steps.may_end.put(None)
    assert steps.next() == [5]
    steps.may_end.put(None)
    assert [future.result(timeout=30).embedding[0] for future in futures] == [0, 1, 2, 3, 4, 5]
    one.close()


def test_close_answers_what_was_taken_and_refuses_the_rest() -> None:
    """Images in buffers are embedded; blocked and later ones are Unavailable."""
    steps = Steps()
    one, futures, blocked = overfull(steps)
    closing = threading.Thread(target=one.close)
    closing.start()
    refused = blocked.result(timeout=30)  # while the run at work goes on
    with pytest.raises(Unavailable):
        refused.result(timeout=30)
    for _ in range(2):
        steps.may_end.put(None)
    closing.join(timeout=30)
    assert not closing.is_alive()
    assert [future.result(timeout=0).embedding[0] for future in futures] == [0, 1, 2, 3, 4]
    with pytest.raises(Unavailable):
        ask(one, 6).result(timeout=0)


class SlowBuffer(np.ndarray[tuple[int, ...], np.dtype[np.uint8]]):
    """A buffer into which rows are only copied once a test lets them."""

    may_copy: threading.Event

    def __array_finalize__(self, made_of: object) -> None:
        """See NumPy."""
        if isinstance(made_of, SlowBuffer):
            self.may_copy = made_of.may_copy

    def __setitem__(self, row: Any, pixels: Any) -> None:
        """Copy a row, when it is time to."""
        assert self.may_copy.wait(30), "the test forgot to let rows be copied"
        super().__setitem__(row, pixels)


def test_run_waits_until_its_rows_are_copied_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is taken but not filled yet is not run: it would be another image's."""
    looked = threading.Event()
    may_copy = threading.Event()
    buffers = [np.zeros((SIZES[-1], *SHAPE), dtype=np.uint8).view(SlowBuffer) for _ in range(2)]
    for buffer in buffers:
        buffer.may_copy = may_copy
    ran: list[int] = []

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        ran.append(len(batch))
        if len(ran) > len(SIZES):  # those before it warm up
            looked.set()
        return embed(batch)

    one = MicroBatcher(run, (buffers[0], buffers[1]), SIZES)
    wait_for = one._written.wait_for

    def waiting(condition: Callable[[], bool]) -> bool:
        looked.set()
        return bool(wait_for(condition))

    monkeypatch.setattr(one._written, "wait_for", waiting)
    one.start()
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(lambda: ask(one, 7).result(timeout=30))
        assert looked.wait(30)  # the batcher has the image, and its pixels are not there yet
        may_copy.set()
        assert answer.result(timeout=30).embedding[0] == 7
    one.close()


def test_close_waits_for_no_run_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that hangs, as of a GPU that fell off, holds no server that stops."""
    monkeypatch.setattr(microbatch, "JOIN_SECONDS", 0.05)
    steps = Steps()
    one = steps.started()
    waiting = ask(one, 1)
    steps.next()
    one.close()
    assert not waiting.done()
    steps.may_end.put(None)
    assert waiting.result(timeout=30).embedding[0] == 1


def test_a_failed_run_is_its_images_error_alone() -> None:
    """What a run raises goes to the images in it; the next run is as if nothing had been."""
    steps = Steps()
    one = steps.started()
    first = ask(one, 1)
    steps.next()
    steps.may_end.put(BackboneError("out of memory"))
    with pytest.raises(BackboneError, match="out of memory"):
        first.result(timeout=30)
    second = ask(one, 2)
    steps.may_end.put(None)
    assert second.result(timeout=30).embedding[0] == 2
    one.close()


def test_a_callback_that_raises_takes_nobody_elses_answer() -> None:
    """The others of the micro-batch get theirs, and so do later ones."""
    steps = Steps()
    one = steps.started()
    first = ask(one, 1)
    steps.next()

    def break_down(_: Answer) -> None:
        raise RuntimeError("a bug of the caller's")

    one.put(picture(2), break_down)
    third = ask(one, 3)
    for _ in range(2):
        steps.may_end.put(None)
    assert first.result(timeout=30).embedding[0] == 1
    assert third.result(timeout=30).embedding[0] == 3
    one.close()


@pytest.mark.parametrize(
    "wrong",
    [picture(1)[:1], picture(1)[:, :, :1], picture(1).astype(np.float32)],
    ids=["a row", "grey", "floats"],
)
def test_pixels_of_another_shape_or_kind_are_refused(wrong: Pixels) -> None:
    """They are a ValueError that says what is wanted; nothing is broadcast or cast."""
    one = batcher(embed)
    answers: list[Answer] = []
    one.put(wrong, answers.append)
    (answer,) = answers
    assert isinstance(answer, ValueError)
    assert "(2, 2, 3)" in str(answer)


def test_every_size_is_warmed_the_largest_first() -> None:
    """When start() returns, the session has run every size once, in the thread that serves."""
    seen: list[tuple[int, str]] = []

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append((len(batch), threading.current_thread().name))
        return embed(batch)

    one = batcher(run)
    one.start()
    assert seen == [(size, "micro-batches") for size in (4, 1, 2)]
    one.close()


def test_a_backbone_that_cannot_be_warmed_does_not_start() -> None:
    """start() raises what the first run raises, such as too little memory."""

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise BackboneError(len(batch))

    with pytest.raises(BackboneError, match="4"):
        batcher(run).start()
