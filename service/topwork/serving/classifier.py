"""Classifier: admits requests, bounds their time, and hands them to the scheduler."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from topwork.errors import DeadlinePassed, InvalidInput, Overloaded
from topwork.limits import ServerLimits
from topwork.serving.admission import Admission
from topwork.serving.classify_batch import (
    Classified,
    ClassifyBatch,
    Finished,
    ImageInput,
    classified,
)
from topwork.serving.fair_queue import Flow
from topwork.serving.inferred import Inferred, inferred
from topwork.serving.registry import Registry
from topwork.serving.scheduler import Scheduler
from topwork.serving.statistics import Statistics
from topwork.telemetry import Telemetry

A = TypeVar("A")

DEFAULT_TOP_K = 5


class Trace(Protocol):
    """Tells elsewhere how long what took."""

    def answered(self, finished: Finished, start: float) -> None:
        """Take note of a request that came at ``start``, as time.perf_counter() tells it."""


class Classifier:
    """Answers requests to classify. At most ``queue_limit`` images are in it at a time."""

    def __init__(
        self,
        registry: Registry,
        *,
        limits: ServerLimits,
        cores: int,
        queue_limit: int,
        telemetry: Telemetry,
        trace: Trace | None = None,
    ) -> None:
        self._registry = registry
        self._telemetry = telemetry
        self._trace = trace
        self._limits = limits
        self._scheduler = Scheduler(cores=cores)
        self._admission = Admission(
            queue_limit, self._scheduler.expected_seconds, most_bytes=limits.max_queue_bytes
        )
        self.statistics = Statistics()
        """What each revision has done."""
        telemetry.watch("topwork_queue_images", "Images that wait.", self._scheduler.waiting)

    def start(self) -> None:
        """Start the threads, one a core."""
        self._scheduler.start()

    def close(self) -> None:
        """Stop them; what is in flight fails as Unavailable."""
        self._scheduler.close()

    def stalled_seconds(self) -> float:
        """Return for how long there has been work and no image has ended."""
        return self._scheduler.stalled_seconds()

    async def classify(
        self,
        model: str,
        images: Sequence[bytes],
        *,
        revision: int = 0,
        top_k: int = 0,
        budget: float | None = None,
        flow: Flow | None = None,
        patient: bool = False,
    ) -> Classified:
        """Return the predictions for encoded ``images``, within ``budget`` seconds.

        ``revision`` 0 is the serving one, ``top_k`` 0 is DEFAULT_TOP_K; calls that share a ``flow``
        share one caller's turns in the queue. Raises NotFound, InvalidInput, DeadlinePassed, and
        Overloaded where there is no room or no time; who is ``patient`` waits for it instead. An
        unreadable image is an ImageError in the results.
        """
        _check_not_negative(top_k, "top_k")
        say = partial(classified, top_k=top_k or DEFAULT_TOP_K)
        return await self._answer(
            model, images, say, revision=revision, budget=budget, flow=flow, patient=patient
        )

    async def infer(
        self,
        model: str,
        images: Sequence[ImageInput],
        *,
        revision: int = 0,
        budget: float | None = None,
        logits: bool = False,
    ) -> Inferred:
        """Return the numbers behind the predictions; ``logits``: those, too.

        As ``classify``, but images may be preprocessed, and raises the ImageError of the first
        image that has one.
        """
        say = partial(inferred, logits=logits)
        return await self._answer(model, images, say, revision=revision, budget=budget)

    async def _answer(
        self,
        model: str,
        images: Sequence[ImageInput],
        say: Callable[[Finished], A],
        *,
        revision: int,
        budget: float | None,
        flow: Flow | None = None,
        patient: bool = False,
    ) -> A:
        start = time.perf_counter()
        check_count(len(images), self._limits)
        _check_not_negative(revision, "revision")
        images = list(images)  # once: a message copies an image's bytes at each look
        size = sum(map(_size, images))
        loop = asyncio.get_running_loop()
        deadline = math.inf if budget is None else loop.time() + budget
        self._telemetry.request_images.observe(len(images))
        try:
            async with asyncio.timeout(budget):
                await self._admission.enter(len(images), size=size, budget=budget, patient=patient)
                try:
                    snapshot = await self._registry.snapshot(model, revision)
                    job = ClassifyBatch(
                        snapshot,
                        images,
                        say=say,
                        limits=self._limits,
                        start=start,
                        telemetry=self._telemetry,
                    )
                    return await self._run(job, deadline=deadline, flow=flow or Flow())
                finally:
                    self._admission.leave(len(images), size=size, patient=patient)
        except Overloaded as error:
            self._telemetry.rejected.labels(error.reason).inc(len(images))
            raise
        except TimeoutError:
            self._telemetry.rejected.labels(DeadlinePassed.reason).inc(len(images))
            raise DeadlinePassed(
                f"{len(images)} images were not classified within {budget:.3f} s"
            ) from None

    async def _run(self, job: ClassifyBatch[A], *, deadline: float, flow: Flow) -> A:
        """Return a job's answer, and count it."""
        try:
            answer, finished = await self._scheduler.run(job, deadline=deadline, flow=flow)
        except BaseException:  # also when the caller has gone
            self.statistics.failed(job.manifest, time.perf_counter() - job.start)
            raise
        self.statistics.answered(finished)
        if self._trace is not None:
            self._trace.answered(finished, job.start)
        return answer


def check_count(images: int, limits: ServerLimits) -> None:
    """Raise InvalidInput unless a request may have so many images."""
    most = limits.max_images_per_request
    if not images:
        raise InvalidInput("the request has no image", field="images")
    if images > most:
        raise InvalidInput(
            f"the request has {images} images; the limit is {most}",
            field="images",
            reason="TOO_MANY_IMAGES",
        )


def _size(image: ImageInput) -> int:
    return len(image) if isinstance(image, bytes) else image.size


def _check_not_negative(value: int, name: str) -> None:
    if value < 0:
        raise InvalidInput(f"{name} is {value}; it must not be negative", field=name)
