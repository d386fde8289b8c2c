"""Conversion of operations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.rpc import error_details_pb2
from support.reports import COMPARISON

from topwork.bundle.findings import Finding
from topwork.changes.jobs import (
    ChangeOutcome,
    ChangeResult,
    Conflict,
    Failure,
    Predicted,
    Progress,
    SkippedUpload,
    StageSeconds,
)
from topwork.changes.rows import OperationState, Subject
from topwork.rpc.convert.operations import STAGES, to_operation
from topwork.rpc.convert.revisions import (
    PublishedRevision,
    damaged_revision,
    to_comparison,
    to_revision,
)
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import revision_pb2 as revision_pb

CONFLICT = Conflict(name="c.jpg", label="blue", other="d.jpg", exact=True)


def operation(progress: Progress, outcome: ChangeOutcome | None = None) -> OperationState:
    """Return an operation in some state."""
    created = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    return OperationState(
        id="abc",
        subject=Subject(
            kind="rename_class",
            model="colours",
            label="violet",
            new_label="mauve",
            validate_only=True,
        ),
        created=created,
        ended=created + timedelta(seconds=2.5) if outcome is not None else None,
        progress=progress,
        outcome=outcome,
    )


def metadata_of(message: object) -> change_pb.ChangeMetadata:
    """Return an operation's metadata."""
    metadata = change_pb.ChangeMetadata()
    assert message.metadata.Unpack(metadata)  # type: ignore[attr-defined]  # google.longrunning has no types
    return metadata


@pytest.mark.parametrize("stage", STAGES)
def test_unfinished_operation_has_its_progress(stage: str) -> None:
    """The metadata has the request, times, stage, counts and conflicts."""
    progress = Progress(stage=stage, done=3, total=9, conflicts=(CONFLICT,))  # type: ignore[arg-type]  # one of the keys
    message = to_operation(operation(progress), None)
    metadata = metadata_of(message)
    name = change_pb.ChangeStage.Name(metadata.stage)
    assert (message.name, message.done) == ("operations/abc", False)
    assert message.WhichOneof("result") is None
    assert name == f"CHANGE_STAGE_{stage.upper()}"
    assert (metadata.model, metadata.label) == ("models/colours", "violet")
    assert (metadata.kind, metadata.new_label) == (change_pb.CHANGE_KIND_RENAME_CLASS, "mauve")
    assert metadata.validate_only
    assert (metadata.done, metadata.total) == (3, 9)
    (conflict,) = metadata.conflicts
    assert (conflict.display_name, conflict.label) == ("c.jpg", "blue")
    assert (conflict.other_name, conflict.exact) == ("d.jpg", True)
    assert metadata.elapsed.ToNanoseconds() > 0
    assert metadata.create_time.ToDatetime(UTC) == operation(Progress(stage="done")).created


def test_failed_operation_has_its_error() -> None:
    """An operation that failed is done and has an error, no response."""
    failure = Failure(kind="NotReady", reason="TOO_FEW_IMAGES", message="2 usable images")
    message = to_operation(operation(Progress(stage="done"), ChangeOutcome(failure=failure)), None)
    assert (message.done, message.WhichOneof("result")) == (True, "error")
    assert (message.error.code, message.error.message) == (9, "2 usable images")
    assert metadata_of(message).elapsed.ToNanoseconds() == 2_500_000_000


def test_rejected_change_has_the_comparison() -> None:
    """The error of a change that the gate rejected names the revision and has the comparison."""
    failure = Failure(
        kind="NotReady", reason="GATE_FAILED", message="rejected", revision=7, comparison=COMPARISON
    )
    message = to_operation(operation(Progress(stage="done"), ChangeOutcome(failure=failure)), None)
    info, comparison = error_details_pb2.ErrorInfo(), revision_pb.Comparison()
    assert message.error.details[0].Unpack(info)
    assert (info.reason, dict(info.metadata)) == ("GATE_FAILED", {"revision": "7"})
    assert message.error.details[1].Unpack(comparison)
    assert comparison == to_comparison(COMPARISON)


def test_finished_operation_has_its_response(published: PublishedRevision) -> None:
    """A success has its revision and every other value of the result."""
    skipped = SkippedUpload(name="b.jpg", reason="DUPLICATE", message="same pixels as a.jpg")
    result = ChangeResult(
        revision=1,
        images_used=19,
        skipped=(skipped,),
        conflicts=(CONFLICT,),
        comparison=COMPARISON,
        # A clock that was set back between two readings must not break the message.
        seconds=StageSeconds(queued=-1.0, embedding=1.5, solving=2.5, publishing=0.5),
    )
    message = to_operation(
        operation(Progress(stage="done"), ChangeOutcome(result=result)), published
    )
    response = change_pb.ChangeResponse()
    assert message.done
    assert message.response.Unpack(response)
    assert response.revision == to_revision(published)
    assert response.images_used == 19
    (left_out,) = response.skipped_images
    assert (left_out.display_name, left_out.error.message) == ("b.jpg", "same pixels as a.jpg")
    assert response.comparison == to_comparison(COMPARISON)
    assert [conflict.display_name for conflict in response.conflicts] == ["c.jpg"]
    times = response.stage_times
    stages = (times.queued, times.embedding, times.solving, times.publishing)
    assert [duration.ToNanoseconds() / 1e9 for duration in stages] == [0, 1.5, 2.5, 0.5]


def test_response_names_a_revision_that_was_removed() -> None:
    """The response has the name and number of a revision that was removed since."""
    result = ChangeResult(
        revision=7, images_used=3, skipped=(), conflicts=(), comparison=COMPARISON
    )
    message = to_operation(operation(Progress(stage="done"), ChangeOutcome(result=result)), None)
    response = change_pb.ChangeResponse()
    assert message.response.Unpack(response)
    assert response.revision == damaged_revision("colours", 7)
    assert response.revision.name == "models/colours/revisions/7"


def test_validated_change_has_no_revision_number(published: PublishedRevision) -> None:
    """The response has labels, metrics, findings and gate failures of the unpublished revision."""
    assert published.metrics is not None
    finding = Finding(kind="copies", severity="note", message="alike", images=("a",), labels=("b",))
    result = ChangeResult(
        revision=0,
        images_used=3,
        skipped=(),
        conflicts=(),
        comparison=COMPARISON,
        gate_failures=("too much was lost",),
        findings=(finding,),
        predicted=Predicted(labels=("blue", "mauve"), metrics=published.metrics),
    )
    message = to_operation(operation(Progress(stage="done"), ChangeOutcome(result=result)), None)
    response = change_pb.ChangeResponse()
    assert message.response.Unpack(response)
    assert (response.revision.name, response.revision.revision) == ("", 0)
    assert list(response.revision.labels) == ["blue", "mauve"]
    assert response.revision.metrics == to_revision(published).metrics
    assert list(response.gate_failures) == ["too much was lost"]
    (found,) = response.findings
    assert (found.kind, found.severity, found.message) == ("copies", "note", "alike")
