"""Classify: from encoded images to predictions, all of one revision."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from topwork.bundle.image import Pixels, preprocess
from topwork.bundle.limits import Limits
from topwork.engine.serving.batcher import Embedded
from topwork.engine.serving.registry import Registry, Snapshot
from topwork.errors import DeadlinePassed, ImageError, InvalidInput, Overloaded

DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A label and its calibrated probability, 0..1."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is on one image."""

    predictions: tuple[Prediction, ...]
    """The most probable one first."""
    unknown_probability: float | None
    """How likely the image is of no label that the model knows, 0..1; None: it cannot tell."""
    is_unknown: bool
    """Whether that is above the model's own threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of each stage; see topwork.v1.Timings."""

    decode: float
    queue: float
    backbone: float
    head: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """The answer to one request."""

    revision: int
    results: tuple[Answer | ImageError, ...]
    """One an image, in request order."""
    timings: Timings


class Classifier:
    """Answers Classify requests. At most ``queue_limit`` images are in it at a time."""

    def __init__(self, registry: Registry, *, limits: Limits, cores: int, queue_limit: int) -> None:
        self._registry = registry
        self._limits = limits
        self._cores = cores
        self._queue_limit = queue_limit
        self._admitted = 0
        self._image_seconds = 0.01  # of one core; follows what is measured
        self._decoders: ThreadPoolExecutor | None = None
        self._heads: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Start the threads: one a core for decoding, one for heads, which need not queue there."""
        self._decoders = ThreadPoolExecutor(self._cores, thread_name_prefix="decode")
        self._heads = ThreadPoolExecutor(1, thread_name_prefix="head")

    def close(self) -> None:
        """Stop them."""
        for pool in (self._decoders, self._heads):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    async def classify(
        self,
        model: str,
        images: Sequence[bytes],
        *,
        revision: int = 0,
        top_k: int = 0,
        budget: float | None = None,
    ) -> Classified:
        """Return the predictions for encoded ``images``, within ``budget`` seconds.

        ``revision`` 0 is the serving one, ``top_k`` 0 is DEFAULT_TOP_K. Raises NotFound,
        InvalidInput, Overloaded, DeadlinePassed; an unreadable image is an ImageError in the
        results.
        """
        start = time.perf_counter()
        self._check(images, revision, top_k)
        self._admit(len(images))
        try:
            async with asyncio.timeout(budget):
                snapshot = await self._registry.snapshot(model, revision)
                return await self._answer(snapshot, images, top_k or DEFAULT_TOP_K, start)
        except ExceptionGroup as group:  # one image's failure, which is no fault of the image
            raise group.exceptions[0] from group
        except TimeoutError:
            raise DeadlinePassed(
                f"{len(images)} images were not classified within {budget:.3f} s"
            ) from None
        finally:
            self._admitted -= len(images)

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

    def _admit(self, images: int) -> None:
        # A request larger than the whole queue is let in when it is alone: it could never be else.
        if self._admitted and self._admitted + images > self._queue_limit:
            raise Overloaded(
                f"{self._admitted} images are queued, {images} more would pass the limit of "
                f"{self._queue_limit}",
                retry_after=max(0.01, self._admitted * self._image_seconds / self._cores),
            )
        self._admitted += images

    async def _answer(
        self, snapshot: Snapshot, images: Sequence[bytes], top_k: int, start: float
    ) -> Classified:
        loop = asyncio.get_running_loop()
        spec = snapshot.backbone.info.preprocess
        decode_seconds = 0.0

        def decode(content: bytes) -> tuple[Pixels, float]:
            began = time.perf_counter()
            return preprocess(content, spec, limits=self._limits), time.perf_counter() - began

        async def embed(index: int) -> Embedded | ImageError:
            nonlocal decode_seconds
            try:
                pixels, seconds = await loop.run_in_executor(self._decoders, decode, images[index])
            except ImageError as error:
                return ImageError(str(error), field=f"images[{index}]", reason=error.reason)
            decode_seconds += seconds
            return await snapshot.backbone.batcher.submit(pixels)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(embed(index)) for index in range(len(images))]
        embedded = [task.result() for task in tasks]
        good = [one for one in embedded if isinstance(one, Embedded)]
        before_head = time.perf_counter()
        said = iter(await loop.run_in_executor(self._heads, _say, snapshot, good, top_k))
        end = time.perf_counter()
        backbone_seconds = sum(one.computed for one in good)
        if good:
            seconds = (decode_seconds + backbone_seconds) / len(good)
            self._image_seconds += 0.1 * (seconds - self._image_seconds)
        return Classified(
            revision=snapshot.manifest.revision,
            results=tuple(one if isinstance(one, ImageError) else next(said) for one in embedded),
            timings=Timings(
                decode=decode_seconds,
                queue=max((one.waited for one in good), default=0.0),
                backbone=backbone_seconds,
                head=end - before_head,
                total=end - start,
            ),
        )


def _say(snapshot: Snapshot, embedded: Sequence[Embedded], top_k: int) -> list[Answer]:
    """Return the answer for each image: ``top_k`` predictions, equal ones in label order."""
    if not embedded:
        return []
    embeddings = np.stack([one.embedding for one in embedded])
    labels, threshold = snapshot.manifest.labels, snapshot.manifest.chosen.unknown_threshold
    if threshold is None:
        probabilities = snapshot.head.run(embeddings)  # (N, C)
        unknown: list[float | None] = [None] * len(embedded)
    else:
        probabilities, said = snapshot.head.run_outputs(embeddings, ("probabilities", "unknown"))
        unknown = said.tolist()
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        Answer(
            predictions=tuple(
                Prediction(label=labels[index], probability=float(row[index])) for index in best
            ),
            unknown_probability=strange,
            is_unknown=strange is not None and threshold is not None and strange >= threshold,
        )
        for row, best, strange in zip(probabilities, order.tolist(), unknown, strict=True)
    ]
