"""Servicer of topwork.v1.ClassifierService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from topwork.access.principals import caller
from topwork.errors import Forbidden
from topwork.limits import DEFAULT_LIMITS
from topwork.rpc.context import Context
from topwork.rpc.convert import fields, inputs
from topwork.rpc.convert.answers import to_classify_response
from topwork.rpc.convert.explanations import to_explain_response
from topwork.rpc.streams import Streams
from topwork.serving.classifier import Classifier
from topwork.serving.explanation.explainer import DEFAULT_NEIGHBOURS, Explainer
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc

STREAM_WINDOW = 32
"""Raising it lets one StreamClassify call have more images in the server at a time."""


class ClassifierServicer(classify_grpc.ClassifierServiceServicer):
    """topwork.v1.ClassifierService over a Classifier and an Explainer."""

    def __init__(
        self,
        classifier: Classifier,
        explainer: Explainer,
        *,
        most_seconds: float,
        stream_window: int = STREAM_WINDOW,
        most_streams: int = DEFAULT_LIMITS.max_streams,
    ) -> None:
        self._classifier = classifier
        self._explainer = explainer
        self._most_seconds = most_seconds
        self._streams = Streams(
            classifier, most_seconds=most_seconds, window=stream_window, most_open=most_streams
        )

    async def Classify(
        self, request: classify_pb.ClassifyRequest, context: Context
    ) -> classify_pb.ClassifyResponse:
        """See the contract."""
        classified = await self._classifier.classify(
            fields.model_id(request.model, field="model"),
            inputs.from_classify(request),
            revision=request.revision,
            top_k=request.top_k,
            budget=self._budget(context),
            caller=caller().turns,
        )
        return to_classify_response(classified)

    async def Explain(
        self, request: classify_pb.ExplainRequest, context: Context
    ) -> classify_pb.ExplainResponse:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        sees_examples = caller().may("train", model)
        neighbours = request.neighbours
        if not request.HasField("neighbours"):
            neighbours = DEFAULT_NEIGHBOURS if sees_examples else 0
        elif neighbours > 0 and not sees_examples:
            raise Forbidden(
                f"neighbours is {neighbours}, but {caller().principal.name!r} lacks role 'train', "
                f"which training images need, for model {model[:100]!r}",
                reason="MODEL_FORBIDDEN",
            )
        image = inputs.one_of(
            request.image,
            request.input,
            given=request.HasField("input"),
            name="image",
            field="request",
        )
        explanation = await self._explainer.explain(
            model,
            image,
            revision=request.revision,
            label=request.label,
            neighbours=neighbours,
            top_k=request.top_k,
            budget=self._budget(context),
            caller=caller().turns,
        )
        return to_explain_response(explanation)

    async def StreamClassify(
        self, request_iterator: AsyncIterator[classify_pb.StreamClassifyRequest], context: Context
    ) -> AsyncIterator[classify_pb.StreamClassifyResponse]:
        """See the contract."""
        answers = self._streams.answer(request_iterator, context.time_remaining, caller())
        async for response in answers:
            yield response

    def _budget(self, context: Context) -> float:
        """Return the seconds that a call may take."""
        remaining = context.time_remaining()
        return self._most_seconds if remaining is None else min(self._most_seconds, remaining)

    def end_streams(self) -> None:
        """End all StreamClassify calls after the images that they have taken in."""
        self._streams.end()
