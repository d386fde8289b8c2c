"""Request batch: decoding of its images, and the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from topwork.arrays import Float32Array
from topwork.bundle.manifest import Manifest
from topwork.errors import ImageError
from topwork.inputs.image import Pixels
from topwork.inputs.kinds import AnyInput, kind_of
from topwork.inputs.preprocess import PreprocessSpec
from topwork.serving.encoders.encoder import MicroBatch
from topwork.serving.head import LoadedHead
from topwork.serving.registry import Snapshot
from topwork.serving.request_batch import BatchHead, Content, ImageOutcome, Scores
from topwork.telemetry import Telemetry

A = TypeVar("A")


class PreparedImage(Protocol):
    """Image that the client decoded and preprocessed."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    def pixels(self, spec: PreprocessSpec) -> Pixels:
        """Return the backbone's input. Raises ImageError if it does not match ``spec``."""


ClassifierInput: TypeAlias = AnyInput | PreparedImage
"""Input of a call: of any kind, or a preprocessed image."""

BatchContent: TypeAlias = Content | Float32Array | ImageError
"""Image for an encoder, embedding (D,), or the error of what is neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelProbability:
    """Label with its calibrated probability, 0..1."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAnswer:
    """Predictions for one image."""

    predictions: tuple[LabelProbability, ...]
    """Sorted by descending probability."""
    unknown_probability: float | None
    """Probability that the image is out of distribution, 0..1; None: the head cannot detect it."""
    is_unknown: bool
    """True if ``unknown_probability`` reaches the model's threshold."""


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
    """Answer to a Classify request."""

    revision: int
    results: tuple[ImageAnswer | ImageError, ...]
    """One result per image, in request order."""
    timings: Timings
    answer_ids: tuple[str, ...] = ()
    """Id of each image's answer, by which it can be corrected; empty if they are not reviewed."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Backbone of a request other than its snapshot's; the embedding begins each output row."""

    backbone: str
    """Digest."""
    width: int
    """Width D of the embedding."""


class _FirstColumns:
    """Head for rows that begin with an embedding of ``width``; see LoadedHead."""

    def __init__(self, head: LoadedHead, width: int) -> None:
        self.size = head.size
        self._head = head
        self._width = width

    def run(self, rows: Float32Array) -> tuple[Float32Array, Float32Array | None]:
        """See LoadedHead."""
        return self._head.run(np.ascontiguousarray(rows[:, : self._width]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Request batch whose images are all processed."""

    snapshot: Snapshot
    outcomes: list[ImageOutcome]
    """One outcome per image, in request order."""
    scores: Scores | None
    """One row per embedded image; None if no image was embedded."""
    timings: Timings
    runs: frozenset[MicroBatch]
    """Micro-batches of its images; empty on a CPU."""


class ClassifyBatch(Generic[A]):
    """RequestBatch of the scheduler: images, and the snapshot that answers all of them.

    ``make_answer`` makes the answer; the request fails with the exception that it raises.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        images: Sequence[BatchContent],
        *,
        make_answer: Callable[[Finished], A],
        start: float,
        telemetry: Telemetry,
        encoding: Encoding | None = None,
    ) -> None:
        self.images = len(images)
        self.backbone = snapshot.backbone.info.digest
        self.head: BatchHead = snapshot.head
        if encoding is not None:
            self.backbone = encoding.backbone
            self.head = _FirstColumns(snapshot.head, encoding.width)
        self.manifest = snapshot.manifest
        self.start = start
        self._snapshot = snapshot
        self._contents = images
        self._make_answer = make_answer
        self._telemetry = telemetry

    def content(self, index: int) -> Content | Float32Array:
        """See RequestBatch."""
        content = self._contents[index]
        if isinstance(content, ImageError):
            raise content
        return content

    def answer(self, outcomes: list[ImageOutcome], scores: Scores | None) -> tuple[A, Finished]:
        """Return the answer with its Finished batch. See RequestBatch."""
        self._observe(outcomes, scores)
        finished = Finished(
            snapshot=self._snapshot,
            outcomes=outcomes,
            scores=scores,
            timings=Timings(
                decode=sum(outcome.decoded for outcome in outcomes),
                queue=max(outcome.waited for outcome in outcomes),
                backbone=sum(outcome.computed for outcome in outcomes),
                head=scores.seconds if scores is not None else 0.0,
                total=time.perf_counter() - self.start,
            ),
            runs=frozenset(outcome.run for outcome in outcomes if outcome.run is not None),
        )
        return self._make_answer(finished), finished

    def _observe(self, outcomes: list[ImageOutcome], scores: Scores | None) -> None:
        telemetry, embedded = self._telemetry, 0
        stages = telemetry.stages(kind_of(self._snapshot.backbone.info.preprocess).name)
        for outcome in outcomes:
            stages.queue.observe(outcome.waited)
            stages.decode.observe(outcome.decoded)
            if not isinstance(outcome.result, ImageError):
                embedded += 1
                stages.backbone.observe(outcome.computed)
                telemetry.micro_batch.observe(outcome.images)
        if scores is not None:
            stages.head.observe(scores.seconds)
        telemetry.models.answered(
            self.manifest,
            None if scores is None else scores.probabilities,
            None if scores is None else scores.unknown,
            errors=len(outcomes) - embedded,
            seconds=(
                sum(outcome.waited for outcome in outcomes),
                sum(outcome.decoded for outcome in outcomes),
                sum(outcome.computed for outcome in outcomes),
                0.0 if scores is None else scores.seconds,
            ),
        )


def classified(finished: Finished, *, top_k: int) -> Classified:
    """Return each image's ``top_k`` predictions, ties in label order, or its error."""
    snapshot, scores = finished.snapshot, finished.scores
    predictions = iter(
        image_answers(snapshot.manifest, scores, top_k) if scores is not None else ()
    )
    return Classified(
        revision=snapshot.manifest.revision,
        results=tuple(
            outcome.result if isinstance(outcome.result, ImageError) else next(predictions)
            for outcome in finished.outcomes
        ),
        timings=finished.timings,
    )


def image_answers(manifest: Manifest, scores: Scores, top_k: int) -> list[ImageAnswer]:
    """Return the answer of each row: its ``top_k`` predictions, ties in label order."""
    labels, threshold = manifest.labels, manifest.chosen.unknown_threshold
    order = np.argsort(-scores.probabilities, axis=1, kind="stable")[:, :top_k].tolist()
    unknowns = [None] * len(order) if scores.unknown is None else scores.unknown.tolist()
    return [
        ImageAnswer(
            predictions=tuple(
                LabelProbability(label=labels[index], probability=row[index]) for index in best
            ),
            unknown_probability=unknown,
            is_unknown=unknown is not None and threshold is not None and unknown >= threshold,
        )
        for row, best, unknown in zip(scores.probabilities.tolist(), order, unknowns, strict=True)
    ]
