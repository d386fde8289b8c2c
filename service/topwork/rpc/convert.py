"""Conversion between plain values and the messages of the contract."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from topwork.bundle.comparison import Comparison, Gate
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.serving import Move, ServingState
from topwork.changes.jobs import ChangeResult, Conflict
from topwork.changes.rows import OperationState, Subject
from topwork.errors import ImageError, InvalidInput
from topwork.limits import ServerLimits
from topwork.serving.classify_batch import Classified, ImageAnswer
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import revision_pb2 as revision_pb
from topwork.wire import status as statuses


@dataclass(frozen=True, slots=True)
class PublishedRevision:
    """A revision as it is stored."""

    manifest: Manifest
    metrics: Metrics | None
    """None: damaged; the same for ``backbone``."""
    backbone: BackboneInfo | None


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model as it is stored."""

    state: ServingState
    serving: PublishedRevision
    revisions: list[int]


STAGES: dict[str, change_pb.ChangeStage.ValueType] = {
    "queued": change_pb.CHANGE_STAGE_QUEUED,
    "embedding": change_pb.CHANGE_STAGE_EMBEDDING,
    "solving": change_pb.CHANGE_STAGE_SOLVING,
    "publishing": change_pb.CHANGE_STAGE_PUBLISHING,
    "done": change_pb.CHANGE_STAGE_DONE,
}

KINDS: dict[str, change_pb.ChangeKind.ValueType] = {
    "add_class": change_pb.CHANGE_KIND_ADD_CLASS,
    "add_examples": change_pb.CHANGE_KIND_ADD_EXAMPLES,
    "remove_class": change_pb.CHANGE_KIND_REMOVE_CLASS,
    "rename_class": change_pb.CHANGE_KIND_RENAME_CLASS,
    "retrain": change_pb.CHANGE_KIND_RETRAIN,
}

LONGEST_NAME = 200
"""Characters of a resource name: none that the server gives is as long."""

MOVES = 100
"""Moves of the serving pointer that a model tells of."""


def resource_id(name: str, *, collection: str, field: str) -> str:
    """Return ``x`` of ``<collection>/x``. Raises InvalidInput if ``name`` is nothing like it."""
    prefix, slash, identifier = name[: LONGEST_NAME + 1].partition("/")
    good = prefix == collection and slash and identifier and "/" not in identifier
    if not good or len(name) > LONGEST_NAME or not name.isprintable():
        raise InvalidInput(
            f"{name[:100]!r} must be a resource name, {collection}/{{id}}, of at most "
            f"{LONGEST_NAME} visible characters",
            field=field,
            reason="RESOURCE_NAME_INVALID",
        )
    return identifier


def number(given: int, *, field: str) -> int:
    """Return a revision's number; 0 is none. Raises InvalidInput."""
    if given < 0:
        raise InvalidInput(f"{field} is {given}; it must not be negative", field=field)
    return given


def seconds(given: Duration, *, field: str) -> float:
    """Return a duration in seconds. Raises InvalidInput if it is negative."""
    found = float(given.ToNanoseconds() / 1e9)
    if found < 0:
        raise InvalidInput(f"{field} is {found:g} s; it must not be negative", field=field)
    return found


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


def from_gate(gate: change_pb.Gate, *, field: str) -> Gate:
    """Return a policy; what is unset is the default. Raises InvalidInput."""
    given: dict[str, Any] = {one.name: value for one, value in gate.ListFields()}
    for name in ("max_old_class_drop", "min_new_class_recall"):
        if not 0 <= given.get(name, 0) <= 1:  # which NaN is not, too
            raise InvalidInput(
                f"{name} is {given[name]:g}; it must be 0 to 1", field=f"{field}.{name}"
            )
    if given.get("max_conflicts", 0) < 0:
        raise InvalidInput(
            f"max_conflicts is {given['max_conflicts']}; it must not be negative",
            field=f"{field}.max_conflicts",
        )
    return Gate(**given)


def to_model(stored: StoredModel, limits: ServerLimits) -> model_pb.Model:
    """Return a model by its serving revision."""
    name = f"models/{stored.serving.manifest.model}"
    return model_pb.Model(
        name=name,
        serving_revision=to_revision(stored.serving),
        revisions=stored.revisions,
        pinned_revisions=stored.state.pinned,
        moves=[_move(one) for one in reversed(stored.state.moves[-MOVES:])],
        limits=model_pb.Limits(
            max_images_per_request=limits.max_images_per_request,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_message_bytes=limits.max_message_bytes,
            max_images_per_upload=limits.max_images_per_upload,
            min_images_per_label=limits.min_images_per_label,
            max_label_length=limits.max_label_length,
            max_labels=limits.max_labels,
            max_upload_bytes=limits.max_upload_bytes,
            max_display_name_length=limits.max_display_name_length,
            max_images_per_model=limits.max_images_per_model,
            max_model_bytes=limits.max_model_bytes,
            max_pending_operations=limits.max_pending_operations,
            max_uploads=limits.max_uploads,
            max_streams=limits.max_streams,
            max_watches=limits.max_watches,
            max_queue_bytes=limits.max_queue_bytes,
            min_free_bytes=limits.min_free_bytes,
            min_free_inodes=limits.min_free_inodes,
        ),
    )


def to_revision(published: PublishedRevision) -> revision_pb.Revision:
    """Return a published revision."""
    manifest, info = published.manifest, published.backbone
    return revision_pb.Revision(
        name=_revision_name(manifest.model, manifest.revision),
        revision=manifest.revision,
        parent_revision=manifest.parent,
        labels=manifest.labels,
        backbone=None
        if info is None
        else revision_pb.Backbone(
            name=info.name,
            digest=info.digest,
            width=info.width,
            precision=info.precision,
            preprocess=revision_pb.PreprocessSpec(
                resize=info.preprocess.resize,
                crop=info.preprocess.crop,
                interpolation=info.preprocess.interpolation,
                deep_grey=info.preprocess.deep_grey,
            ),
        ),
        metrics=None if published.metrics is None else _metrics(published.metrics),
        create_time=_timestamp(manifest.created),
        head=revision_pb.Head(
            kind=manifest.chosen.kind,
            normalisation=manifest.chosen.normalisation,
            strength=manifest.chosen.strength,
            temperature=manifest.chosen.temperature,
            unknown_threshold=manifest.chosen.unknown_threshold,
        ),
        change=manifest.change,
        operation=_operation_name(manifest.operation),
        rejection=manifest.rejection.failures if manifest.rejection is not None else (),
        comparison=to_comparison(manifest.comparison),
    )


def damaged_revision(model: str, revision: int) -> revision_pb.Revision:
    """Return what is left of a revision that cannot be read."""
    return revision_pb.Revision(name=_revision_name(model, revision), revision=revision)


def to_operation(
    operation: OperationState, published: PublishedRevision | None
) -> operations_pb2.Operation:
    """Return an operation; ``published`` is its revision, None while or where there is none."""
    message = operations_pb2.Operation(
        name=f"operations/{operation.id}", done=operation.outcome is not None
    )
    subject, outcome = operation.subject, operation.outcome
    message.metadata.Pack(
        change_pb.ChangeMetadata(
            kind=KINDS.get(subject.kind, change_pb.CHANGE_KIND_UNSPECIFIED),
            model=f"models/{subject.model}",
            label=subject.label,
            new_label=subject.new_label,
            validate_only=subject.validate_only,
            stage=STAGES.get(operation.progress.stage, change_pb.CHANGE_STAGE_UNSPECIFIED),
            done=operation.progress.done,
            total=operation.progress.total,
            conflicts=[_conflict(one) for one in operation.progress.conflicts],
            create_time=_timestamp(operation.created),
            elapsed=_duration(
                ((operation.ended or datetime.now(UTC)) - operation.created).total_seconds()
            ),
        )
    )
    if outcome is not None and outcome.failure is not None:
        message.error.CopyFrom(
            statuses.from_stored(
                outcome.failure.kind,
                outcome.failure.message,
                reason=outcome.failure.reason,
                revision=outcome.failure.revision,
                comparison=to_comparison(outcome.failure.comparison),
            )
        )
    elif outcome is not None and outcome.result is not None:
        message.response.Pack(_change_response(subject, outcome.result, published))
    return message


def to_comparison(comparison: Comparison | None) -> revision_pb.Comparison | None:
    """Return a comparison."""
    if comparison is None:
        return None
    taught = comparison.taught
    return revision_pb.Comparison(
        images=comparison.images,
        accuracy_before=comparison.accuracy_before,
        accuracy_after=comparison.accuracy_after,
        drop=comparison.drop,
        drop_low=comparison.drop_low,
        drop_high=comparison.drop_high,
        calibration_error_before=comparison.ece_before,
        calibration_error_after=comparison.ece_after,
        labels=[
            revision_pb.LabelComparison(
                label=one.label,
                images=one.images,
                recall_before=one.recall_before,
                recall_after=one.recall_after,
            )
            for one in comparison.labels
        ],
        taught=None
        if taught is None
        else revision_pb.TaughtLabel(
            label=taught.label,
            images=taught.images,
            recall=taught.recall,
            recall_low=taught.low,
            recall_high=taught.high,
        ),
        confusions=[
            revision_pb.Confusion(
                label=one.label, called=one.called, images=one.images, share=one.share
            )
            for one in comparison.confusions
        ],
    )


def _result(result: ImageAnswer | ImageError) -> classify_pb.ImageResult:
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


def _change_response(
    subject: Subject, result: ChangeResult, published: PublishedRevision | None
) -> change_pb.ChangeResponse:
    seconds = result.seconds
    if published is not None:
        revision = to_revision(published)
    elif result.predicted is not None:
        predicted = result.predicted
        revision = revision_pb.Revision(
            labels=predicted.labels, metrics=_metrics(predicted.metrics), change=subject.kind
        )
    else:
        revision = damaged_revision(subject.model, result.revision)
    return change_pb.ChangeResponse(
        revision=revision,
        images_used=result.images_used,
        skipped_images=[
            change_pb.SkippedImage(
                display_name=one.name, error=statuses.from_skipped(one.reason, one.message)
            )
            for one in result.skipped
        ],
        comparison=to_comparison(result.comparison),
        stage_times=change_pb.StageTimes(
            queued=_duration(seconds.queued),
            embedding=_duration(seconds.embedding),
            solving=_duration(seconds.solving),
            publishing=_duration(seconds.publishing),
        ),
        conflicts=[_conflict(one) for one in result.conflicts],
        gate_failures=result.gate_failures,
        findings=[
            change_pb.Finding(kind=one.kind, severity=one.severity, message=one.message)
            for one in result.findings
        ],
    )


def _conflict(conflict: Conflict) -> change_pb.Conflict:
    return change_pb.Conflict(
        display_name=conflict.name,
        label=conflict.label,
        other_name=conflict.other,
        exact=conflict.exact,
    )


def _move(move: Move) -> model_pb.ServingMove:
    return model_pb.ServingMove(
        revision=move.revision,
        previous_revision=move.previous,
        cause=move.why,
        operation=_operation_name(move.operation),
        time=_timestamp(move.time),
    )


def _metrics(metrics: Metrics) -> revision_pb.Metrics:
    return revision_pb.Metrics(
        images=metrics.images,
        folds=metrics.folds,
        accuracy=metrics.accuracy,
        accuracy_low=metrics.accuracy_low,
        accuracy_high=metrics.accuracy_high,
        log_loss=metrics.log_loss,
        per_label=[
            revision_pb.LabelMetrics(
                label=one.label, images=one.images, precision=one.precision, recall=one.recall
            )
            for one in metrics.per_label
        ],
        confusion=[count for row in metrics.confusion for count in row],
        expected_calibration_error=metrics.ece,
        unknown=None
        if metrics.unknown is None
        else revision_pb.UnknownMetrics(
            auroc=metrics.unknown.auroc,
            false_reject_rate=metrics.unknown.false_reject_rate,
            detection_rate=metrics.unknown.detection_rate,
        ),
    )


def _revision_name(model: str, revision: int) -> str:
    return f"models/{model}/revisions/{revision}"


def _operation_name(identifier: str) -> str:
    return f"operations/{identifier}" if identifier else ""


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, round(seconds * 1e9)))
    return duration


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
