"""Rows that another version wrote, or that are damaged: their readable fields are shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dbos import WorkflowStatus
from support import golden

from topwork.changes import rows
from topwork.changes.jobs import ChangeOutcome, Failure, Progress
from topwork.changes.rows import OperationState, Subject
from topwork.errors import Corrupt
from topwork.rpc.convert.operations import to_operation
from topwork.v1 import change_pb2 as change_pb

SUBJECT = {
    "kind": "add_class",
    "model": "flowers",
    "label": "tulip",
    "new_label": "",
    "validate_only": False,
}


def row(status: Any = "ENQUEUED", **columns: Any) -> WorkflowStatus:
    """Return a row as DBOS returns it."""
    made = WorkflowStatus()
    made.workflow_id = "7"
    made.status = status
    made.attributes = {**SUBJECT, "accepted": 1000.5, "bytes": 12}
    made.input = made.output = made.completed_at = None
    made.created_at = made.updated_at = 2_000_000
    for name, value in columns.items():
        setattr(made, name, value)
    return made


def stored(version: str, kind: str) -> Any:
    """Return a golden document as the database stores it."""
    return json.loads((golden.ROOT / version / f"{kind}.json").read_bytes())


def done(output: Any) -> ChangeOutcome:
    """Return the outcome of a succeeded row with this output."""
    outcome = rows.operation(row("SUCCESS", output=output)).outcome
    assert outcome is not None
    return outcome


def shown(operation: OperationState) -> change_pb.ChangeMetadata:
    """Return the metadata that a client gets."""
    metadata = change_pb.ChangeMetadata()
    to_operation(operation, None).metadata.Unpack(metadata)
    return metadata


def test_unrecognised_kind_is_unspecified() -> None:
    """Model and label are shown."""
    newer = row(attributes={**SUBJECT, "kind": "merge_classes", "with": "rose"})
    operation = rows.operation(newer)
    assert operation.subject == Subject(model="flowers", label="tulip")
    assert shown(operation).kind == change_pb.CHANGE_KIND_UNSPECIFIED
    assert shown(operation).label == "tulip"


@pytest.mark.parametrize("version", ["schema-1", "schema-2"])
def test_attributes_before_the_first_release_are_read(version: str) -> None:
    """They have only a model and a label."""
    operation = rows.operation(row(attributes=stored(version, "Subject")))
    assert operation.subject == Subject(model="flowers", label="雛菊")
    assert operation.created.timestamp() == 2000.0


@pytest.mark.parametrize("completed", [3_000_500, None])
def test_outcome_without_its_end_takes_that_of_the_row(completed: int | None) -> None:
    """Times of a row are in milliseconds; an old version has no time of completion."""
    ended = rows.operation(row("SUCCESS", output={}, completed_at=completed)).ended
    assert ended is not None
    assert ended.timestamp() == (2000.0 if completed is None else 3000.5)


@pytest.mark.parametrize("attributes", [None, [], "text", {"model": 5, "kind": {}}])
def test_unreadable_attributes_give_an_empty_subject(attributes: Any) -> None:
    """The operation has its id and its time."""
    operation = rows.operation(row(attributes=attributes))
    assert (operation.id, operation.subject, operation.outcome) == ("7", Subject(), None)
    assert shown(operation).model == "models/"
    assert rows.size(row(attributes=attributes)) == 0


@pytest.mark.parametrize("accepted", [None, "yesterday", 1e300, float("nan")])
def test_invalid_time_of_acceptance_is_no_error(accepted: Any) -> None:
    """The operation can be shown."""
    shown(rows.operation(row(attributes={**SUBJECT, "accepted": accepted})))


def test_unrecognised_stage_keeps_its_counts() -> None:
    """Done and total are shown, and the stage is unspecified."""
    progress = {"stage": "distilling", "done": 3, "total": 9}
    operation = rows.operation(row("PENDING"), progress=progress)
    assert operation.progress == Progress(stage="", done=3, total=9)
    assert shown(operation).stage == change_pb.CHANGE_STAGE_UNSPECIFIED


def test_result_keeps_its_readable_fields() -> None:
    """Only the field with an unrecognised value has its default."""
    output = stored("0.1.0", "ChangeOutcome")
    whole = done(output).result
    assert whole is not None
    output["result"]["findings"][0]["severity"] = "catastrophe"
    result = done(output).result
    assert result is not None
    assert (result.revision, result.comparison, result.findings) == (7, whole.comparison, ())


@pytest.mark.parametrize("version", ["schema-1", "schema-2"])
def test_results_before_the_first_release_are_read(version: str) -> None:
    """They have revision, images and durations."""
    result = done(stored(version, "ChangeOutcome")).result
    assert result is not None
    assert (result.revision, result.images_used, result.seconds.solving) == (2, 12, 2.0)


def test_failure_of_an_unrecognised_class_keeps_its_message() -> None:
    """Class, reason and message are read, even if the comparison is unreadable."""
    failure = {"kind": "Paused", "reason": "PAUSED", "message": "later", "comparison": 5}
    assert done({"failure": failure}).failure == Failure(
        kind="Paused", reason="PAUSED", message="later"
    )


@pytest.mark.parametrize("output", [None, "gAR9lC4=", [], {}, {"result": None, "failure": None}, 7])
def test_unreadable_outcome_is_a_failure(output: Any) -> None:
    """The operation is finished, and its reason is DATA_LOSS."""
    failure = done(output).failure
    assert failure is not None
    assert (failure.kind, failure.reason) == ("Corrupt", "DATA_LOSS")


def test_late_cancel_has_the_readable_fields_of_the_result() -> None:
    """The revision serves, so the operation succeeded."""
    late = {"revision": 3, "images_used": "many"}
    outcome = rows.operation(row("CANCELLED"), late=late).outcome
    assert outcome is not None
    assert outcome.result is not None
    assert (outcome.result.revision, outcome.result.images_used) == (3, 0)


def test_uploads_of_an_unrecognised_job_are_read() -> None:
    """``gc`` needs the images of all kinds of changes, also of newer versions."""
    job = {"kind": "merge_classes", "uploads": [{"name": "a", "digest": "d1", "weight": 2}]}
    assert rows.uploads(row(input={"args": [job], "kwargs": {}})) == {"d1"}
    assert rows.uploads(row(input={"args": [{"kind": "retrain"}]})) == set()


@pytest.mark.parametrize(
    "stored_input", [None, "text", {}, {"args": []}, {"args": ["x"]}, {"args": [{"uploads": [{}]}]}]
)
def test_uploads_of_an_unreadable_job_are_corrupt(stored_input: Any) -> None:
    """``gc`` must not delete the images of a job that it cannot read."""
    with pytest.raises(Corrupt, match="operation '7'"):
        rows.uploads(row(input=stored_input))
