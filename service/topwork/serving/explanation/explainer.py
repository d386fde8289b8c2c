"""Explainer: classification of one image, evidence for a label, and the nearest examples."""

from __future__ import annotations

import asyncio
import unicodedata
from dataclasses import dataclass

import numpy as np

from topwork.arrays import Float32Array
from topwork.bundle.features import Normaliser, make
from topwork.bundle.manifest import Manifest
from topwork.errors import DeadlinePassed, ImageError, InvalidInput, NotFound
from topwork.inputs.image import Region
from topwork.inputs.kinds import AnyInput
from topwork.serving.classifier import DEFAULT_TOP_K, Classifier, check_not_negative
from topwork.serving.classify_batch import Encoding, ImageAnswer, Timings, image_answers
from topwork.serving.examples import Examples
from topwork.serving.explanation.evidence import Evidence, evidence
from topwork.serving.explanation.features import features
from topwork.serving.explanation.map_graph import MapLayout, NoMap
from topwork.serving.explanation.mapped_backbones import MappedBackbones
from topwork.serving.explanation.neighbours import NearestExamples, Neighbour
from topwork.serving.head import LoadedHead
from topwork.serving.registry import Snapshot

DEFAULT_NEIGHBOURS = 5
MOST_NEIGHBOURS = 50


@dataclass(frozen=True, slots=True)
class Explained:
    """Evidence for a label, or the reason why there is none."""

    label: str
    evidence: Evidence | None
    unavailable: str
    """Empty if there is evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Answer to an Explain request."""

    manifest: Manifest
    answer: ImageAnswer
    explained: Explained
    region: Region
    """The part of the upright image that was classified."""
    neighbours: tuple[Neighbour, ...]
    timings: Timings | None
    """None without a server."""


class Explainer:
    """Engine of Explain requests, which go through the classifier's queue."""

    def __init__(
        self, classifier: Classifier, backbones: MappedBackbones, examples: Examples
    ) -> None:
        self._classifier = classifier
        self._backbones = backbones
        self._nearest = NearestExamples(examples)

    async def explain(
        self,
        model: str,
        image: AnyInput,
        *,
        revision: int = 0,
        label: str = "",
        neighbours: int = 0,
        top_k: int = 0,
        budget: float | None = None,
        caller: str = "",
    ) -> Explanation:
        """Explain the classification of an image or embedding, within ``budget`` seconds.

        An empty ``label`` is the most probable one. Raises the errors of ``Classifier.classify``,
        ImageError, NotFound for a label, Corrupt and Unavailable.
        """
        check_neighbours(neighbours)
        check_not_negative(top_k, "top_k")
        layout: MapLayout | NoMap = NoMap()

        async def encoding(snapshot: Snapshot) -> Encoding | None:
            nonlocal layout
            check_label(snapshot.manifest, label)
            try:
                mapped = await self._backbones.get(snapshot.backbone)
            except NoMap as reason:
                layout = reason
                return None
            layout = mapped.layout
            return mapped.encoding

        try:
            async with asyncio.timeout(budget):
                finished = await self._classifier.encode(
                    model, image, encoding, revision=revision, budget=budget, caller=caller
                )
                (outcome,) = finished.outcomes
                if isinstance(outcome.result, ImageError):
                    raise ImageError(str(outcome.result), reason=outcome.result.reason)
                assert finished.scores is not None, "the image was embedded"
                snapshot = finished.snapshot
                width = snapshot.backbone.info.width
                (answer,) = image_answers(
                    snapshot.manifest, finished.scores, top_k or DEFAULT_TOP_K
                )
                explained = await asyncio.to_thread(
                    explain, snapshot.manifest, snapshot.head, outcome.result, layout, label, width
                )
                nearest = (
                    await self._nearest.nearest(
                        snapshot.manifest,
                        normaliser_of(snapshot.head, width),
                        outcome.result[:width],
                        neighbours,
                    )
                    if neighbours
                    else []
                )
        except TimeoutError:
            raise DeadlinePassed(f"the image was not explained within {budget:.3f} s") from None
        return Explanation(
            manifest=snapshot.manifest,
            answer=answer,
            explained=explained,
            region=outcome.region,
            neighbours=tuple(nearest),
            timings=finished.timings,
        )


def explain(
    manifest: Manifest,
    head: LoadedHead,
    row: Float32Array,
    layout: MapLayout | NoMap,
    label: str,
    width: int,
) -> Explained:
    """Return the evidence for a label in the output ``row`` of a backbone, of ``layout``.

    An empty ``label`` is the most probable one. NoMap: ``row`` is an embedding of ``width``.
    """
    logits = head.logits(row[None, :width])[0]
    chosen = unicodedata.normalize("NFC", label) if label else manifest.labels[logits.argmax()]
    if isinstance(layout, NoMap):
        return Explained(chosen, None, _unavailable(layout))
    index = manifest.labels.index(chosen)
    try:
        numpy_head = head.read(width)
        found = evidence(numpy_head, features(row, layout), index, float(logits[index]))
    except KeyError:
        return Explained(chosen, None, "the head was not made by this software")
    except NoMap as reason:
        return Explained(chosen, None, _unavailable(reason))
    return Explained(chosen, found, "")


def _unavailable(reason: NoMap) -> str:
    return f"the backbone has no map: {reason}"


def normaliser_of(head: LoadedHead, width: int) -> Normaliser:
    """Return the normalisation of a head; that to length 1 if it cannot be read."""
    try:
        return head.read(width).normaliser
    except KeyError:
        return make("l2", np.zeros((1, width), dtype=np.float32))


def check_label(manifest: Manifest, label: str) -> None:
    """Raise NotFound unless ``label`` is empty or a label of the revision."""
    if label and unicodedata.normalize("NFC", label) not in manifest.labels:
        text = (
            f"revision {manifest.revision} of model {manifest.model!r} has no label {label[:80]!r}"
        )
        raise NotFound(text, kind="label", resource=label[:80])


def check_neighbours(neighbours: int) -> None:
    """Raise InvalidInput if the number of neighbours is not possible."""
    if not 0 <= neighbours <= MOST_NEIGHBOURS:
        raise InvalidInput(
            f"neighbours is {neighbours}; it must be 0 to {MOST_NEIGHBOURS}", field="neighbours"
        )
