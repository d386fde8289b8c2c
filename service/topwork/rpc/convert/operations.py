"""Conversion of operations into messages."""

from __future__ import annotations

from datetime import UTC, datetime

from google.longrunning import operations_pb2

from topwork.changes.jobs import ChangeResult, Conflict
from topwork.changes.rows import OperationState, Subject
from topwork.rpc.convert.evaluations import to_evaluation
from topwork.rpc.convert.fields import duration, timestamp
from topwork.rpc.convert.revisions import (
    PublishedRevision,
    damaged_revision,
    to_comparison,
    to_metrics,
    to_revision,
)
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import revision_pb2 as revision_pb
from topwork.wire import status as statuses

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
    "remove_examples": change_pb.CHANGE_KIND_REMOVE_EXAMPLES,
    "add_classes": change_pb.CHANGE_KIND_ADD_CLASSES,
    "move_examples": change_pb.CHANGE_KIND_MOVE_EXAMPLES,
    "evaluate": change_pb.CHANGE_KIND_EVALUATE,
}


def to_operation(
    operation: OperationState, published: PublishedRevision | None
) -> operations_pb2.Operation:
    """Return an operation; ``published`` is the revision that it made, None without one."""
    message = operations_pb2.Operation(
        name=f"operations/{operation.id}", done=operation.outcome is not None
    )
    subject, outcome = operation.subject, operation.outcome
    message.metadata.Pack(
        change_pb.ChangeMetadata(
            kind=KINDS.get(subject.kind, change_pb.CHANGE_KIND_UNSPECIFIED),
            model=f"models/{subject.model}",
            label=subject.label,
            labels=subject.labels,
            new_label=subject.new_label,
            validate_only=subject.validate_only,
            stage=STAGES.get(operation.progress.stage, change_pb.CHANGE_STAGE_UNSPECIFIED),
            done=operation.progress.done,
            total=operation.progress.total,
            conflicts=[_conflict(subject, conflict) for conflict in operation.progress.conflicts],
            evaluation_set=subject.evaluation_set,
            create_time=timestamp(operation.created),
            elapsed=duration(
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
        result = outcome.result
        message.response.Pack(
            _change_response(subject, result, published)
            if result.evaluation is None
            else to_evaluation(result.evaluation, result.skipped)
        )
    return message


def _change_response(
    subject: Subject, result: ChangeResult, published: PublishedRevision | None
) -> change_pb.ChangeResponse:
    seconds = result.seconds
    revision: revision_pb.Revision | None
    if published is not None:
        revision = to_revision(published)
    elif result.predicted is not None:
        predicted = result.predicted
        revision = revision_pb.Revision(
            labels=predicted.labels, metrics=to_metrics(predicted.metrics), change=subject.kind
        )
    elif result.revision:
        revision = damaged_revision(subject.model, result.revision)
    else:
        revision = None
    return change_pb.ChangeResponse(
        revision=revision,
        images_used=result.images_used,
        skipped_images=[
            change_pb.SkippedImage(
                display_name=image.name,
                error=statuses.from_skipped(image.reason, image.message),
                label=image.label or subject.label,
            )
            for image in result.skipped
        ],
        comparison=to_comparison(result.comparison),
        stage_times=change_pb.StageTimes(
            queued=duration(seconds.queued),
            embedding=duration(seconds.embedding),
            solving=duration(seconds.solving),
            publishing=duration(seconds.publishing),
        ),
        conflicts=[_conflict(subject, conflict) for conflict in result.conflicts],
        gate_failures=result.gate_failures,
        missing_labels=result.missing_labels,
        findings=[
            change_pb.Finding(kind=finding.kind, severity=finding.severity, message=finding.message)
            for finding in result.findings
        ],
        old_revision=result.parent,
        examples=[
            change_pb.ChangedExample(digest=example.digest, labels=example.labels)
            for example in result.examples
        ],
    )


def _conflict(subject: Subject, conflict: Conflict) -> change_pb.Conflict:
    return change_pb.Conflict(
        display_name=conflict.name,
        label=conflict.label,
        other_name=conflict.other,
        exact=conflict.exact,
        uploaded_label=conflict.uploaded_label or subject.label,
    )
