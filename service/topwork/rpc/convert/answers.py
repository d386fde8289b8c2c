"""Conversion of classified images into messages."""

from __future__ import annotations

from topwork.errors import ImageError
from topwork.rpc.convert.fields import duration
from topwork.serving.classify_batch import Classified, ImageAnswer, Timings
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.wire import status as statuses


def to_classify_response(classified: Classified) -> classify_pb.ClassifyResponse:
    """Return the response to a Classify call."""
    response = classify_pb.ClassifyResponse(
        revision=classified.revision,
        results=[to_image_result(result) for result in classified.results],
        timings=to_timings(classified.timings),
    )
    for result, identifier in zip(response.results, classified.answer_ids, strict=False):
        result.answer_id = identifier
    return response


def to_timings(timings: Timings) -> classify_pb.Timings:
    """Return the message of a request's timings."""
    return classify_pb.Timings(
        decode=duration(timings.decode),
        queue=duration(timings.queue),
        backbone=duration(timings.backbone),
        head=duration(timings.head),
        total=duration(timings.total),
    )


def to_image_result(result: ImageAnswer | ImageError) -> classify_pb.ImageResult:
    """Return the message of one image's answer or error."""
    if isinstance(result, ImageError):
        return classify_pb.ImageResult(error=statuses.from_error(result))
    return classify_pb.ImageResult(classification=to_classification(result))


def to_classification(answer: ImageAnswer) -> classify_pb.Classification:
    """Return the message of one image's answer."""
    return classify_pb.Classification(
        predictions=[
            classify_pb.Prediction(label=label.label, probability=label.probability)
            for label in answer.predictions
        ],
        unknown_probability=answer.unknown_probability,
        is_unknown=None if answer.unknown_probability is None else answer.is_unknown,
    )
