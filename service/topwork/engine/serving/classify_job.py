"""One request batch: how its images are decoded, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topwork.bundle.image import Pixels, preprocess
from topwork.bundle.limits import Limits
from topwork.engine.serving.backbone import Backbone, Embedded, MicroBatch
from topwork.engine.serving.head import Head
from topwork.engine.serving.registry import Snapshot
from topwork.engine.serving.scheduler import Outcome, Scores
from topwork.errors import ImageError
from topwork.telemetry import Telemetry


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
    runs: frozenset[MicroBatch] = frozenset()
    """The micro-batches that its images were in; on a CPU none."""


class ClassifyJob:
    """A request batch as a Job: its images, and the one snapshot that answers for all of them."""

    def __init__(
        self,
        snapshot: Snapshot,
        images: Sequence[bytes],
        *,
        top_k: int,
        limits: Limits,
        start: float,
        telemetry: Telemetry,
    ) -> None:
        self.images = len(images)
        self.backbone: Backbone = snapshot.backbone
        self.head: Head = snapshot.head
        self._snapshot = snapshot
        self._contents = images
        self._top_k = top_k
        self._limits = limits
        self._start = start
        self._telemetry = telemetry

    def decode(self, index: int) -> Pixels:
        """See Job."""
        spec = self.backbone.info.preprocess
        try:
            return preprocess(self._contents[index], spec, limits=self._limits)
        except ImageError as error:
            raise ImageError(str(error), field=f"images[{index}]", reason=error.reason) from None

    def answer(self, outcomes: list[Outcome], scores: Scores | None) -> Classified:
        """See Job."""
        self._observe(outcomes, scores)
        said = iter(_say(self._snapshot, scores, self._top_k) if scores is not None else ())
        good = [one.result for one in outcomes if isinstance(one.result, Embedded)]
        return Classified(
            revision=self._snapshot.manifest.revision,
            results=tuple(
                one.result if isinstance(one.result, ImageError) else next(said) for one in outcomes
            ),
            timings=Timings(
                decode=sum(one.decoded for one in outcomes),
                queue=max(one.waited for one in outcomes),
                backbone=sum(one.computed for one in good),
                head=scores.seconds if scores is not None else 0.0,
                total=time.perf_counter() - self._start,
            ),
            runs=frozenset(one.run for one in good if one.run is not None),
        )

    def _observe(self, outcomes: list[Outcome], scores: Scores | None) -> None:
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
        model = self._snapshot.manifest.model
        for result, images in (("ok", good), ("error", len(outcomes) - good)):
            if images:
                telemetry.images.labels(model, result).inc(images)


def _say(snapshot: Snapshot, scores: Scores, top_k: int) -> list[Answer]:
    """Return the answer for each row: ``top_k`` predictions, equal ones in label order."""
    labels, threshold = snapshot.manifest.labels, snapshot.manifest.chosen.unknown_threshold
    order = np.argsort(-scores.probabilities, axis=1, kind="stable")[:, :top_k].tolist()
    strangers = [None] * len(order) if scores.unknown is None else scores.unknown.tolist()
    return [
        Answer(
            predictions=tuple(
                Prediction(label=labels[index], probability=row[index]) for index in best
            ),
            unknown_probability=unknown,
            is_unknown=unknown is not None and threshold is not None and unknown >= threshold,
        )
        for row, best, unknown in zip(scores.probabilities.tolist(), order, strangers, strict=True)
    ]
