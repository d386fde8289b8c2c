"""Results of calls as frozen values; ``raw`` is the protobuf message of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from google.longrunning import operations_pb2

from topwork.client import notebook, outcomes
from topwork.client.calls import CallFailed
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb


class _Result:
    """Base of the values; other attributes, such as ``HasField``, are read from the message.

    Programs written for the messages continue to work. Type checkers see only the values.
    """

    __slots__ = ()
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or name == "raw":  # copy and pickle look them up
                raise AttributeError(name)
            return getattr(self.raw, name)


class Prediction(NamedTuple):
    """A label and its probability."""

    label: str
    probability: float
    """Calibrated, 0..1; over all labels of the model the sum is 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult(_Result):
    """Classification of one image, or the error of an image that could not be classified."""

    predictions: tuple[Prediction, ...]
    """The most probable first; empty if there is an error."""
    unknown_probability: float | None
    """Probability that the image is out-of-distribution; None: the model has no estimate."""
    is_unknown: bool | None
    """True if ``unknown_probability`` reaches the model's threshold; None: it has no estimate."""
    error: CallFailed | None = field(compare=False)
    answer_id: str = field(default="", compare=False)
    """Id of the answer, for ``Client.correct_answer``; empty: the review policy is off."""
    raw: classify_pb.ImageResult = field(repr=False, hash=False)

    @classmethod
    def of(cls, raw: classify_pb.ImageResult) -> Self:
        """Convert a message."""
        classification = raw.classification
        known = classification.HasField("unknown_probability")
        return cls(
            predictions=tuple(
                Prediction(prediction.label, prediction.probability)
                for prediction in classification.predictions
            ),
            unknown_probability=classification.unknown_probability if known else None,
            is_unknown=classification.is_unknown if known else None,
            error=CallFailed(raw.error) if raw.HasField("error") else None,
            answer_id=raw.answer_id,
            raw=raw,
        )

    def _repr_html_(self) -> str:
        if self.error is not None:
            return notebook.prediction_table((), f"error: {self.error}")
        note = f"unknown: {self.unknown_probability:.3f}" if self.is_unknown else ""
        return notebook.prediction_table(self.predictions, note)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyResult(_Result):
    """Results of a Classify call."""

    revision: int
    """The revision that answered."""
    results: tuple[ImageResult, ...]
    """The images' results, in order."""
    raw: classify_pb.ClassifyResponse = field(repr=False, hash=False)

    @classmethod
    def of(cls, raw: classify_pb.ClassifyResponse) -> Self:
        """Convert a message."""
        return cls(revision=raw.revision, results=tuple(map(ImageResult.of, raw.results)), raw=raw)


class Region(NamedTuple):
    """Rectangle in an upright image, in fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceMap(_Result):
    """Evidence for a label by position: the sum of all ``values``, bias and rest is the logit."""

    values: tuple[tuple[float, ...], ...]
    """Rows from the top; above 0: evidence for the label, below 0: against it."""
    bias: float
    """Share of the logit that does not depend on the image."""
    rest: float
    """Share that the map does not explain; 0, but for rounding, if the head is linear."""
    logit: float
    """Calibrated logit of the label."""
    region: Region
    """Part of the image that the map covers."""
    raw: classify_pb.EvidenceMap = field(repr=False, hash=False)

    @classmethod
    def of(cls, raw: classify_pb.EvidenceMap) -> Self:
        """Convert a message."""
        values, region = tuple(raw.values), raw.region
        return cls(
            values=tuple(
                values[begin : begin + raw.columns] for begin in range(0, len(values), raw.columns)
            ),
            bias=raw.bias,
            rest=raw.rest,
            logit=raw.logit,
            region=Region(region.left, region.top, region.right, region.bottom),
            raw=raw,
        )


class Neighbour(NamedTuple):
    """Training image that is near to an explained image."""

    label: str
    similarity: float
    """Cosine of the normalised embeddings, -1 to 1; 1: equal images."""
    name: str
    """File name; empty: unknown."""
    digest: str
    """Image digest, as in ``Client.get_example``."""
    preview: bytes
    """Small JPEG file; empty if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainResult(_Result):
    """Classification of one image, with its explanation."""

    revision: int
    """The revision that answered."""
    result: ImageResult
    """The classification."""
    label: str
    """The label that is explained."""
    map: EvidenceMap | None
    """Evidence for the label by position; None: see ``map_unavailable``."""
    map_unavailable: str
    """Reason why there is no map; empty if there is one."""
    neighbours: tuple[Neighbour, ...]
    """The nearest training images, the most similar first."""
    raw: classify_pb.ExplainResponse = field(repr=False, hash=False)

    @classmethod
    def of(cls, raw: classify_pb.ExplainResponse) -> Self:
        """Convert a message."""
        return cls(
            revision=raw.revision,
            result=ImageResult.of(classify_pb.ImageResult(classification=raw.classification)),
            label=raw.label,
            map=EvidenceMap.of(raw.map) if raw.HasField("map") else None,
            map_unavailable=raw.map_unavailable,
            neighbours=tuple(
                Neighbour(
                    near.label,
                    near.similarity,
                    near.display_name,
                    near.name.rpartition("/")[2],
                    near.preview,
                )
                for near in raw.neighbours
            ),
            raw=raw,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResult:
    """Result of one image of a stream."""

    revision: int
    """The revision that answered."""
    result: ImageResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(_Result):
    """State of a change of a model, or of an evaluation."""

    name: str
    """Such as ``operations/0eedf153-e607-48de-8787-0cdbbd424572``."""
    done: bool
    """True once it has succeeded or failed."""
    raw: operations_pb2.Operation = field(repr=False, hash=False)

    @classmethod
    def of(cls, raw: operations_pb2.Operation) -> Self:
        """Convert a message."""
        return cls(name=raw.name, done=raw.done, raw=raw)

    def progress(self) -> change_pb.ChangeMetadata:
        """Return the subject and the progress of the change."""
        return outcomes.progress(self.raw)

    def result(self) -> change_pb.ChangeResponse:
        """Return the result of the finished change. Raises CallFailed if it failed."""
        return outcomes.result(self.raw)

    def evaluation(self) -> evaluation_pb.Evaluation:
        """Return the result of the finished evaluation. Raises CallFailed if it failed."""
        return outcomes.evaluation(self.raw)

    def _repr_html_(self) -> str:
        """Return its state, and the comparison that the gate judged, or the evaluation made."""
        evaluates = self.raw.response.Is(evaluation_pb.Evaluation.DESCRIPTOR)
        try:
            done = (self.evaluation() if evaluates else self.result()) if self.done else None
            comparison = None if done is None else done.comparison
            text = f"{self.name}: {'done' if self.done else 'in progress'}"
        except CallFailed as error:
            comparison, text = outcomes.rejected(error), f"{self.name}: {error}"
        table = "" if comparison is None else notebook.comparison_table(comparison)
        return f"<p>{escape(text)}</p>{table}"
