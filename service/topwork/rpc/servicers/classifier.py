"""Servicer of topwork.v1.ClassifierService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from topwork.access.principals import caller
from topwork.limits import DEFAULT_LIMITS
from topwork.rpc.context import Context
from topwork.rpc.convert import fields
from topwork.rpc.convert.answers import to_classify_response
from topwork.rpc.streams import Streams
from topwork.serving.classifier import Classifier
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc

STREAM_WINDOW = 32
"""Raising it lets one StreamClassify call have more images in the server at a time."""


class ClassifierServicer(classify_grpc.ClassifierServiceServicer):
    """topwork.v1.ClassifierService over a Classifier."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        most_seconds: float,
        stream_window: int = STREAM_WINDOW,
        most_streams: int = DEFAULT_LIMITS.max_streams,
    ) -> None:
        self._classifier = classifier
        self._most_seconds = most_seconds
        self._streams = Streams(
            classifier, most_seconds=most_seconds, window=stream_window, most_open=most_streams
        )

    async def Classify(
        self, request: classify_pb.ClassifyRequest, context: Context
    ) -> classify_pb.ClassifyResponse:
        """See the contract."""
        remaining = context.time_remaining()
        budget = self._most_seconds if remaining is None else min(self._most_seconds, remaining)
        classified = await self._classifier.classify(
            fields.model_id(request.model, field="model"),
            request.images,
            revision=request.revision,
            top_k=request.top_k,
            budget=budget,
            caller=caller().turns,
        )
        return to_classify_response(classified)

    async def StreamClassify(
        self, request_iterator: AsyncIterator[classify_pb.StreamClassifyRequest], context: Context
    ) -> AsyncIterator[classify_pb.StreamClassifyResponse]:
        """See the contract."""
        answers = self._streams.answer(request_iterator, context.time_remaining, caller())
        async for response in answers:
            yield response

    def end_streams(self) -> None:
        """End all StreamClassify calls after the images that they have taken in."""
        self._streams.end()
