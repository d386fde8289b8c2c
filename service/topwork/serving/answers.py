"""Answers of request batches whose images are all embedded: one run of a head for a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from topwork.errors import ImageError
from topwork.serving.request_batch import ImageOutcome, RequestBatch, Scores

LOOP_IMAGES = 64
LOOP_BYTES = 16 * 10**6
"""Most images, and largest product of images and a head's bytes, answered in the event loop.

About a millisecond; raising it delays other calls more often.
"""


@dataclass(frozen=True, slots=True)
class CompleteBatch:
    """Request batch with an outcome for each of its images."""

    batch: RequestBatch[Any]
    future: asyncio.Future[Any]
    """Gets the answer, or its exception."""
    outcomes: list[ImageOutcome]


class Answers:
    """Maker of answers. Batches that are complete at the same time form a group for each head.

    So a head's weights are read from memory once for a group. All state belongs to one event loop.
    """

    def __init__(self) -> None:
        self._complete: list[CompleteBatch] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="heads")

    def close(self) -> None:
        """Drop the answers that are not made yet."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def add(self, complete: CompleteBatch) -> None:
        """Answer a batch soon, unless its future is done by then."""
        if not self._complete:
            complete.future.get_loop().call_soon(self._answer)
        self._complete.append(complete)

    def _answer(self) -> None:
        batches, self._complete = self._complete, []
        groups: dict[int, list[CompleteBatch]] = {}
        for complete in batches:
            if not complete.future.done():
                groups.setdefault(id(complete.batch.head), []).append(complete)
        for group in groups.values():
            rows = sum(complete.batch.images for complete in group)
            if rows <= LOOP_IMAGES and rows * group[0].batch.head.size <= LOOP_BYTES:
                _resolve(_answers(group))
            else:
                self._thread.submit(self._answer_in_thread, group, asyncio.get_running_loop())

    def _answer_in_thread(
        self, group: list[CompleteBatch], loop: asyncio.AbstractEventLoop
    ) -> None:
        answers = list(_answers(group))
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(_resolve, answers)


def _resolve(answers: Iterable[tuple[CompleteBatch, object]]) -> None:
    for complete, answer in answers:
        if complete.future.done():  # its caller has cancelled
            continue
        if isinstance(answer, Exception):
            complete.future.set_exception(answer)
        else:
            complete.future.set_result(answer)


def _answers(group: list[CompleteBatch]) -> Iterator[tuple[CompleteBatch, object]]:
    """Yield the answer of each batch, or its exception; all have the same head."""
    start = time.perf_counter()
    rows = [
        [image.result for image in complete.outcomes if not isinstance(image.result, ImageError)]
        for complete in group
    ]
    probabilities, unknown = None, None
    try:
        if any(rows):
            head = group[0].batch.head
            probabilities, unknown = head.run(np.stack([*chain.from_iterable(rows)]))
    except Exception as error:
        yield from ((complete, error) for complete in group)
        return
    seconds = time.perf_counter() - start
    begin = 0
    for complete, batch_rows in zip(group, rows, strict=True):
        own = slice(begin, begin := begin + len(batch_rows))
        scores = None
        if probabilities is not None and batch_rows:
            batch_unknown = None if unknown is None else unknown[own]
            scores = Scores(probabilities[own], batch_unknown, seconds)
        try:
            yield complete, complete.batch.answer(complete.outcomes, scores)
        except Exception as error:
            yield complete, error
