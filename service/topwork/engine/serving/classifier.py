"""Classify: what is let in, and for how long, on its way to the scheduler."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Protocol

from topwork.bundle.limits import Limits
from topwork.engine.serving.admission import Admission
from topwork.engine.serving.classify_job import Classified, ClassifyJob
from topwork.engine.serving.fair_queue import Flow
from topwork.engine.serving.registry import Registry
from topwork.engine.serving.scheduler import Scheduler
from topwork.errors import DeadlinePassed, InvalidInput, Overloaded
from topwork.telemetry import Telemetry

DEFAULT_TOP_K = 5


class Trace(Protocol):
    """Tells elsewhere how long what took."""

    def classified(self, model: str, classified: Classified, start: float) -> None:
        """Take note of a request that came at ``start``, as time.perf_counter() tells it."""


class Classifier:
    """Answers Classify requests. At most ``queue_limit`` images are in it at a time."""

    def __init__(
        self,
        registry: Registry,
        *,
        limits: Limits,
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
        self._admission = Admission(queue_limit, self._scheduler.expected_seconds)
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
        start = time.perf_counter()
        self._check(images, revision, top_k)
        loop = asyncio.get_running_loop()
        deadline = math.inf if budget is None else loop.time() + budget
        self._telemetry.request_images.observe(len(images))
        try:
            async with asyncio.timeout(budget):
                await self._admission.enter(len(images), budget=budget, patient=patient)
                try:
                    snapshot = await self._registry.snapshot(model, revision)
                    job = ClassifyJob(
                        snapshot,
                        images,
                        top_k=top_k or DEFAULT_TOP_K,
                        limits=self._limits,
                        start=start,
                        telemetry=self._telemetry,
                    )
                    classified = await self._scheduler.run(
                        job, deadline=deadline, flow=flow or Flow()
                    )
                finally:
                    self._admission.leave(len(images), patient=patient)
            if self._trace is not None:
                self._trace.classified(model, classified, start)
            return classified
        except Overloaded as error:
            self._telemetry.rejected.labels(error.reason).inc(len(images))
            raise
        except TimeoutError:
            self._telemetry.rejected.labels(DeadlinePassed.reason).inc(len(images))
            raise DeadlinePassed(
                f"{len(images)} images were not classified within {budget:.3f} s"
            ) from None

    def _check(self, images: Sequence[bytes], revision: int, top_k: int) -> None:
        most = self._limits.max_images_per_request
        if not images:
            raise InvalidInput("the request has no image", field="images")
        if len(images) > most:
            raise InvalidInput(
                f"the request has {len(images)} images; the limit is {most}",
                field="images",
                reason="TOO_MANY_IMAGES",
            )
        for name, value in (("revision", revision), ("top_k", top_k)):
            if value < 0:
                raise InvalidInput(f"{name} is {value}; it must not be negative", field=name)
