"""Classifier: admission, deadline and scheduling of Classify and Infer requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from topwork.errors import DeadlinePassed, ImageError, InvalidInput, Overloaded
from topwork.inputs.embeddings import EmbeddingSpec, SentEmbedding, checked
from topwork.inputs.kinds import AnyInput, check_kind, kind_given
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec, SentContent
from topwork.limits import ServerLimits
from topwork.serving.admission import Admission
from topwork.serving.classify_batch import (
    BatchContent,
    Classified,
    ClassifierInput,
    ClassifyBatch,
    Encoding,
    Finished,
    classified,
)
from topwork.serving.encoders.encoder import Encoder
from topwork.serving.fair_queue import Flow
from topwork.serving.inferred import Inferred, inferred
from topwork.serving.registry import Registry, Snapshot
from topwork.serving.request_batch import Content
from topwork.serving.scheduler import Scheduler
from topwork.serving.statistics import Statistics
from topwork.telemetry import Telemetry

A = TypeVar("A")

DEFAULT_TOP_K = 5

LOOP_BYTES = 2**16
"""Raising it delays other calls more often: most bytes of embeddings converted in the event loop.

They take about half a millisecond; more are converted in a thread.
"""


class Trace(Protocol):
    """Sink of trace data."""

    def answered(self, finished: Finished, start: float) -> None:
        """Record a request that arrived at ``start`` (time.perf_counter())."""


class Reviewer(Protocol):
    """Sink of answered images, for people to label."""

    def answered(
        self, finished: Finished, contents: Sequence[BatchContent], *, with_ids: bool
    ) -> tuple[str, ...]:
        """Take the images of a request; return the ids of their answers, in order.

        An empty id: an error; no ids: they are not reviewed. Must not block or raise.
        """


class Classifier:
    """Engine of Classify and Infer requests, with at most ``queue_limit`` images at a time."""

    def __init__(
        self,
        registry: Registry,
        encoder: Encoder,
        *,
        limits: ServerLimits,
        cores: int,
        queue_limit: int,
        telemetry: Telemetry,
        trace: Trace | None = None,
        reviewer: Reviewer | None = None,
    ) -> None:
        self._registry = registry
        self._telemetry = telemetry
        self._trace = trace
        self._reviewer = reviewer
        self._limits = limits
        self._scheduler = Scheduler(encoder, cores=cores)
        self._admission = Admission(
            queue_limit, self._scheduler.expected_seconds, max_bytes=limits.max_queue_bytes
        )
        self.statistics = Statistics()
        """Statistics of each revision."""
        telemetry.watch("topwork_queue_images", "Images that wait.", self._scheduler.waiting)

    async def start(self) -> None:
        """Start the encoder, which the registry loads backbones into."""
        await self._scheduler.start()

    async def aclose(self) -> None:
        """Stop the encoder; requests in flight fail as Unavailable."""
        await self._scheduler.aclose()

    def works(self) -> bool:
        """Return True if images are encoded now."""
        return self._scheduler.works()

    def stalled_seconds(self) -> float:
        """Return the seconds since the last image finished while there was work."""
        return self._scheduler.stalled_seconds()

    async def classify(
        self,
        model: str,
        images: Sequence[AnyInput],
        *,
        revision: int = 0,
        top_k: int = 0,
        budget: float | None = None,
        flow: Flow | None = None,
        can_wait: bool = False,
        caller: str = "",
    ) -> Classified:
        """Return the predictions for ``images``, within ``budget`` seconds.

        They are of the kind that the model takes.
        ``revision`` 0 is the serving revision, ``top_k`` 0 is DEFAULT_TOP_K. Callers take turns in
        the queue, and so do the flows of a ``caller``: a call has its own, the messages of a stream
        share one. Raises NotFound, InvalidInput, DeadlinePassed, and Overloaded if capacity or time
        is insufficient; a call that ``can_wait`` waits for capacity instead. An unreadable image is
        an ImageError in the results.
        """
        check_not_negative(top_k, "top_k")
        make_answer = partial(classified, top_k=top_k or DEFAULT_TOP_K)
        answer, ids = await self._answer(
            model,
            images,
            make_answer,
            revision=revision,
            budget=budget,
            flow=flow,
            can_wait=can_wait,
            caller=caller,
            with_ids=True,
        )
        return replace(answer, answer_ids=ids) if ids else answer

    async def infer(
        self,
        model: str,
        images: Sequence[ClassifierInput],
        *,
        revision: int = 0,
        budget: float | None = None,
        logits: bool = False,
        caller: str = "",
    ) -> Inferred:
        """Return probabilities and embeddings as arrays; with ``logits``, the logits, too.

        Like ``classify``, but images may be preprocessed, and the first ImageError is raised.
        """
        make_answer = partial(inferred, logits=logits)
        answer, _ = await self._answer(
            model, images, make_answer, revision=revision, budget=budget, caller=caller
        )
        return answer

    async def encode(
        self,
        model: str,
        image: AnyInput,
        encoding: Callable[[Snapshot], Awaitable[Encoding | None]],
        *,
        revision: int = 0,
        budget: float | None = None,
        caller: str = "",
    ) -> Finished:
        """Return an image as the backbone that ``encoding`` returns encodes it, or an embedding.

        It takes capacity and turns like ``classify``; None: the snapshot's own backbone. The
        ImageError is in the outcome. Raises the errors of ``classify`` and of ``encoding``.
        """
        finished, _ = await self._answer(
            model,
            [image],
            lambda finished: finished,
            revision=revision,
            budget=budget,
            caller=caller,
            encoding=encoding,
        )
        return finished

    async def _answer(
        self,
        model: str,
        images: Sequence[ClassifierInput],
        make_answer: Callable[[Finished], A],
        *,
        revision: int,
        budget: float | None,
        flow: Flow | None = None,
        can_wait: bool = False,
        caller: str,
        encoding: Callable[[Snapshot], Awaitable[Encoding | None]] | None = None,
        with_ids: bool = False,
    ) -> tuple[A, tuple[str, ...]]:
        """Return the answer with the ids of the images' answers; see Reviewer."""
        start = time.perf_counter()
        check_count(len(images), self._limits)
        check_not_negative(revision, "revision")
        images = list(images)  # once: protobuf copies an image's bytes at each access
        size = sum(map(_size, images))
        computed = isinstance(images[0], SentEmbedding)
        loop = asyncio.get_running_loop()
        deadline = math.inf if budget is None else loop.time() + budget
        self._telemetry.request_images.observe(len(images))
        try:
            async with asyncio.timeout(budget):
                await self._admission.acquire(
                    len(images),
                    size=size,
                    budget=None if computed else budget,  # no encoder: it takes no time
                    can_wait=can_wait,
                    caller=caller,
                )
                try:
                    snapshot = await self._registry.snapshot(model, revision)
                    contents = await _contents(images, snapshot)
                    batch = ClassifyBatch(
                        snapshot,
                        contents,
                        make_answer=make_answer,
                        start=start,
                        telemetry=self._telemetry,
                        encoding=None if encoding is None else await encoding(snapshot),
                    )
                    answer, finished = await self._run(
                        batch, deadline=deadline, flow=flow or Flow(), caller=caller
                    )
                    ids: tuple[str, ...] = ()
                    if self._reviewer is not None and encoding is None:
                        ids = self._reviewer.answered(finished, contents, with_ids=with_ids)
                    return answer, ids
                finally:
                    self._admission.release(
                        len(images), size=size, can_wait=can_wait, caller=caller
                    )
        except Overloaded as error:
            self._telemetry.rejected.labels(error.reason).inc(len(images))
            raise
        except TimeoutError:
            self._telemetry.rejected.labels(DeadlinePassed.reason).inc(len(images))
            raise DeadlinePassed(
                f"{len(images)} images were not classified within {budget:.3f} s"
            ) from None

    async def _run(
        self, batch: ClassifyBatch[A], *, deadline: float, flow: Flow, caller: str
    ) -> tuple[A, Finished]:
        """Return the answer of a request batch with its Finished batch, and count it."""
        try:
            answer, finished = await self._scheduler.run(
                batch, deadline=deadline, flow=flow, caller=caller
            )
        except BaseException:  # also when the caller has cancelled
            self.statistics.failed(batch.manifest, time.perf_counter() - batch.start)
            raise
        self.statistics.answered(finished)
        if self._trace is not None:
            self._trace.answered(finished, batch.start)
        return answer, finished


def check_count(images: int, limits: ServerLimits) -> None:
    """Raise InvalidInput unless the number of images of a request is within the limits."""
    most = limits.max_images_per_request
    if not images:
        raise InvalidInput("the request has no image", field="images")
    if images > most:
        raise InvalidInput(
            f"the request has {images} images; the limit is {most}",
            field="images",
            reason="TOO_MANY_IMAGES",
        )


async def _contents(images: list[ClassifierInput], snapshot: Snapshot) -> Sequence[BatchContent]:
    """Return the images for an encoder, or embeddings, with an error for each that does not fit.

    Raises InvalidInput for inputs of another kind than the model's.
    """
    model, spec = snapshot.manifest.model, snapshot.backbone.info.preprocess
    for image in images:
        check_kind(kind_given(image), spec, model=model, field="inputs")
    if all(isinstance(image, bytes | SentContent) for image in images):
        return _converted(images, spec)
    if isinstance(spec, EmbeddingSpec) and sum(map(_size, images)) <= LOOP_BYTES:
        return _converted(images, spec)
    return await asyncio.to_thread(_converted, images, spec)


def _converted(images: list[ClassifierInput], spec: InputSpec) -> list[BatchContent]:
    return [_content(index, image, spec) for index, image in enumerate(images)]


def _content(index: int, image: ClassifierInput, spec: InputSpec) -> BatchContent:
    try:
        if isinstance(image, SentContent):
            return Content(image.data)
        if isinstance(image, SentEmbedding):
            assert isinstance(spec, EmbeddingSpec), "check_kind refuses other models"
            return checked(image, spec)
        if isinstance(image, bytes):
            return Content(image)
        assert isinstance(spec, PreprocessSpec), "check_kind refuses other models"
        return Content(image.pixels(spec).tobytes(), pixels=True)
    except ImageError as error:
        return ImageError(str(error), field=f"images[{index}]", reason=error.reason)


def _size(image: ClassifierInput) -> int:
    return len(image) if isinstance(image, bytes) else image.size


def check_not_negative(value: int, name: str) -> None:
    """Raise InvalidInput if the field ``name`` is negative."""
    if value < 0:
        raise InvalidInput(f"{name} is {value}; it must not be negative", field=name)
