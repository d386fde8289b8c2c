"""One request batch: how its images are decoded, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from topwork.errors import ImageError
from topwork.inputs.image import Pixels, preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits
from topwork.serving.encoders.backbone import Backbone, Embedded, MicroBatch
from topwork.serving.head import LoadedHead
from topwork.serving.registry import Snapshot
from topwork.serving.scheduler import ImageOutcome, Scores
from topwork.telemetry import Telemetry

A = TypeVar("A")


class PreparedImage(Protocol):
    """An image that its sender decoded and preprocessed."""

    @property
    def size(self) -> int:
        """Bytes that it holds."""

    def pixels(self, spec: PreprocessSpec) -> Pixels:
        """Return what the backbone takes. Raises ImageError if it is not as ``spec`` says."""


ImageInput: TypeAlias = bytes | PreparedImage
"""An encoded image, or one that was preprocessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelProbability:
    """A label and its calibrated probability, 0..1."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAnswer:
    """What is on one image."""

    predictions: tuple[LabelProbability, ...]
    """The most probable one first."""
    unknown_probability: float | None
    """How likely the image is of no label that the model knows, 0..1; None: it cannot tell."""
    is_unknown: bool
    """Whether that is at the model's own threshold or above."""


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
    results: tuple[ImageAnswer | ImageError, ...]
    """One an image, in request order."""
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """All that is known of a request batch when its last image is done."""

    snapshot: Snapshot
    outcomes: list[ImageOutcome]
    """One an image, in request order."""
    scores: Scores | None
    """A row for each image that was embedded; None if none was."""
    timings: Timings
    runs: frozenset[MicroBatch]
    """The micro-batches that its images were in; on a CPU none."""


class ClassifyBatch(Generic[A]):
    """A request batch as a Job: its images, and the one snapshot that answers for all of them.

    ``say`` makes the answer; if it raises, the request fails with that.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        images: Sequence[ImageInput],
        *,
        say: Callable[[Finished], A],
        limits: InputLimits,
        start: float,
        telemetry: Telemetry,
    ) -> None:
        self.images = len(images)
        self.backbone: Backbone = snapshot.backbone
        self.head: LoadedHead = snapshot.head
        self.manifest = snapshot.manifest
        self.start = start
        self._snapshot = snapshot
        self._contents = images
        self._say = say
        self._limits = limits
        self._telemetry = telemetry

    def decode(self, index: int) -> Pixels:
        """See Job."""
        spec, content = self.backbone.info.preprocess, self._contents[index]
        try:
            if isinstance(content, bytes):
                return preprocess(content, spec, limits=self._limits)
            return content.pixels(spec)
        except ImageError as error:
            raise ImageError(str(error), field=f"images[{index}]", reason=error.reason) from None

    def answer(self, outcomes: list[ImageOutcome], scores: Scores | None) -> tuple[A, Finished]:
        """Return the answer, and what it was made of. See Job."""
        self._observe(outcomes, scores)
        good = [one.result for one in outcomes if isinstance(one.result, Embedded)]
        finished = Finished(
            snapshot=self._snapshot,
            outcomes=outcomes,
            scores=scores,
            timings=Timings(
                decode=sum(one.decoded for one in outcomes),
                queue=max(one.waited for one in outcomes),
                backbone=sum(one.computed for one in good),
                head=scores.seconds if scores is not None else 0.0,
                total=time.perf_counter() - self.start,
            ),
            runs=frozenset(one.run for one in good if one.run is not None),
        )
        return self._say(finished), finished

    def _observe(self, outcomes: list[ImageOutcome], scores: Scores | None) -> None:
        telemetry, good = self._telemetry, 0
        for one in outcomes:
            telemetry.queue.observe(one.waited)
            telemetry.decode.observe(one.decoded)
            if isinstance(one.result, Embedded):
                good += 1
                telemetry.backbone.observe(one.result.computed)
                telemetry.micro_batch.observe(one.result.micro_batch)
        if scores is not None:
            telemetry.head.observe(scores.seconds)
        model = self.manifest.model
        for result, images in (("ok", good), ("error", len(outcomes) - good)):
            if images:
                telemetry.images.labels(model, result).inc(images)


def classified(finished: Finished, *, top_k: int) -> Classified:
    """Return ``top_k`` predictions of each image, equal ones in label order, or its error."""
    snapshot, scores = finished.snapshot, finished.scores
    said = iter(_say(snapshot, scores, top_k) if scores is not None else ())
    return Classified(
        revision=snapshot.manifest.revision,
        results=tuple(
            one.result if isinstance(one.result, ImageError) else next(said)
            for one in finished.outcomes
        ),
        timings=finished.timings,
    )


def _say(snapshot: Snapshot, scores: Scores, top_k: int) -> list[ImageAnswer]:
    """Return the answer for each row."""
    labels, threshold = snapshot.manifest.labels, snapshot.manifest.chosen.unknown_threshold
    order = np.argsort(-scores.probabilities, axis=1, kind="stable")[:, :top_k].tolist()
    strangers = [None] * len(order) if scores.unknown is None else scores.unknown.tolist()
    return [
        ImageAnswer(
            predictions=tuple(
                LabelProbability(label=labels[index], probability=row[index]) for index in best
            ),
            unknown_probability=unknown,
            is_unknown=unknown is not None and threshold is not None and unknown >= threshold,
        )
        for row, best, unknown in zip(scores.probabilities.tolist(), order, strangers, strict=True)
    ]
