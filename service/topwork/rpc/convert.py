"""Between the engine's values and the contract's messages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from topwork.bundle.limits import Limits
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.engine.jobs import AddClassResult, Stage
from topwork.engine.operations import Operation
from topwork.engine.serving.classify_job import Answer, Classified
from topwork.errors import ImageError, InvalidInput
from topwork.rpc import status as statuses
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import model_service_pb2 as model_pb


@dataclass(frozen=True, slots=True)
class Published:
    """A revision as it is stored."""

    manifest: Manifest
    metrics: Metrics
    backbone: BackboneInfo


STAGES: dict[Stage, model_pb.AddClassStage.ValueType] = {
    "queued": model_pb.ADD_CLASS_STAGE_QUEUED,
    "embedding": model_pb.ADD_CLASS_STAGE_EMBEDDING,
    "solving": model_pb.ADD_CLASS_STAGE_SOLVING,
    "publishing": model_pb.ADD_CLASS_STAGE_PUBLISHING,
    "done": model_pb.ADD_CLASS_STAGE_DONE,
}


def resource_id(name: str, *, collection: str, field: str) -> str:
    """Return ``x`` of ``<collection>/x``. Raises InvalidInput if ``name`` is nothing like it."""
    prefix, slash, identifier = name.partition("/")
    if prefix != collection or not slash or not identifier or "/" in identifier:
        raise InvalidInput(
            f"{name[:100]!r} must be a resource name, {collection}/{{id}}",
            field=field,
            reason="RESOURCE_NAME_INVALID",
        )
    return identifier


def to_classify_response(classified: Classified) -> classify_pb.ClassifyResponse:
    """Return the response to a Classify call."""
    timings = classified.timings
    return classify_pb.ClassifyResponse(
        revision=classified.revision,
        results=[_result(one) for one in classified.results],
        timings=classify_pb.Timings(
            decode=_duration(timings.decode),
            queue=_duration(timings.queue),
            backbone=_duration(timings.backbone),
            head=_duration(timings.head),
            total=_duration(timings.total),
        ),
    )


def to_model(serving: Published, revisions: list[int], limits: Limits) -> model_pb.Model:
    """Return a model by its serving revision."""
    return model_pb.Model(
        name=f"models/{serving.manifest.model}",
        serving_revision=to_revision(serving),
        revisions=revisions,
        limits=model_pb.Limits(
            max_images_per_request=limits.max_images_per_request,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_message_bytes=limits.max_message_bytes,
            max_images_per_upload=limits.max_images_per_upload,
            min_images_per_label=limits.min_images_per_label,
            max_label_length=limits.max_label_length,
            max_labels=limits.max_labels,
        ),
    )


def to_revision(published: Published) -> model_pb.Revision:
    """Return a published revision."""
    manifest, info = published.manifest, published.backbone
    return model_pb.Revision(
        name=_revision_name(manifest),
        revision=manifest.revision,
        parent_revision=manifest.parent,
        labels=manifest.labels,
        backbone=model_pb.Backbone(
            name=info.name,
            digest=info.digest,
            width=info.width,
            precision=info.precision,
            preprocess=model_pb.PreprocessSpec(
                resize=info.preprocess.resize,
                crop=info.preprocess.crop,
                interpolation=info.preprocess.interpolation,
            ),
        ),
        metrics=_metrics(published.metrics),
        create_time=_timestamp(manifest.created),
        head=model_pb.Head(
            kind=manifest.chosen.kind,
            normalisation=manifest.chosen.normalisation,
            strength=manifest.chosen.strength,
            temperature=manifest.chosen.temperature,
            unknown_threshold=manifest.chosen.unknown_threshold,
        ),
    )


def to_operation(operation: Operation, published: Published | None) -> operations_pb2.Operation:
    """Return an operation; ``published`` is its revision, None while or where there is none."""
    message = operations_pb2.Operation(
        name=f"operations/{operation.id}", done=operation.outcome is not None
    )
    message.metadata.Pack(
        model_pb.AddClassMetadata(
            model=f"models/{operation.model}",
            label=operation.label,
            stage=STAGES[operation.progress.stage],
            done=operation.progress.done,
            total=operation.progress.total,
            create_time=_timestamp(operation.created),
        )
    )
    outcome = operation.outcome
    if outcome is not None and outcome.failure is not None:
        message.error.CopyFrom(statuses.from_failure(outcome.failure))
    elif outcome is not None and outcome.result is not None:
        revision = model_pb.Revision(
            name=f"models/{operation.model}/revisions/{outcome.result.revision}",
            revision=outcome.result.revision,
        )
        if published is not None:
            revision = to_revision(published)
        message.response.Pack(_add_class_response(outcome.result, revision))
    return message


def _result(result: Answer | ImageError) -> classify_pb.ImageResult:
    if isinstance(result, ImageError):
        return classify_pb.ImageResult(error=statuses.from_error(result))
    return classify_pb.ImageResult(
        classification=classify_pb.Classification(
            predictions=[
                classify_pb.Prediction(label=one.label, probability=one.probability)
                for one in result.predictions
            ],
            unknown_probability=result.unknown_probability,
            is_unknown=None if result.unknown_probability is None else result.is_unknown,
        )
    )


def _add_class_response(
    result: AddClassResult, revision: model_pb.Revision
) -> model_pb.AddClassResponse:
    seconds = result.seconds
    return model_pb.AddClassResponse(
        revision=revision,
        images_used=result.images_used,
        skipped_images=[
            model_pb.SkippedImage(
                display_name=one.name, error=statuses.from_skipped(one.reason, one.message)
            )
            for one in result.skipped
        ],
        comparison=model_pb.Comparison(
            old_labels_accuracy_before=result.old_labels_accuracy_before,
            old_labels_accuracy_after=result.old_labels_accuracy_after,
            new_label_recall=result.new_label_recall,
        ),
        stage_times=model_pb.StageTimes(
            queued=_duration(seconds.queued),
            embedding=_duration(seconds.embedding),
            solving=_duration(seconds.solving),
            publishing=_duration(seconds.publishing),
        ),
    )


def _metrics(metrics: Metrics) -> model_pb.Metrics:
    return model_pb.Metrics(
        images=metrics.images,
        folds=metrics.folds,
        accuracy=metrics.accuracy,
        accuracy_low=metrics.accuracy_low,
        accuracy_high=metrics.accuracy_high,
        log_loss=metrics.log_loss,
        per_label=[
            model_pb.LabelMetrics(
                label=one.label, images=one.images, precision=one.precision, recall=one.recall
            )
            for one in metrics.per_label
        ],
        confusion=[count for row in metrics.confusion for count in row],
        expected_calibration_error=metrics.ece,
        unknown=None
        if metrics.unknown is None
        else model_pb.UnknownMetrics(
            auroc=metrics.unknown.auroc,
            false_reject_rate=metrics.unknown.false_reject_rate,
            detection_rate=metrics.unknown.detection_rate,
        ),
    )


def _revision_name(manifest: Manifest) -> str:
    return f"models/{manifest.model}/revisions/{manifest.revision}"


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, round(seconds * 1e9)))
    return duration


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
