"""A row that another version wrote, or that is damaged, shows what can be read of it."""

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
    """Return a row as DBOS gives it."""
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
    """Return a golden document as the database has it."""
    return json.loads((golden.ROOT / version / f"{kind}.json").read_bytes())


def done(output: Any) -> ChangeOutcome:
    """Return the outcome of a finished row with this output."""
    outcome = rows.operation(row("SUCCESS", output=output)).outcome
    assert outcome is not None
    return outcome


def shown(operation: OperationState) -> change_pb.ChangeMetadata:
    """Return what a client is told of an operation."""
    metadata = change_pb.ChangeMetadata()
    to_operation(operation, None).metadata.Unpack(metadata)
    return metadata


def test_a_kind_that_is_not_known_is_shown_as_unspecified() -> None:
    """Model and label are shown, the kind is unset."""
    newer = row(attributes={**SUBJECT, "kind": "merge_classes", "with": "rose"})
    found = rows.operation(newer)
    assert found.subject == Subject(model="flowers", label="tulip")
    assert shown(found).kind == change_pb.CHANGE_KIND_UNSPECIFIED
    assert shown(found).label == "tulip"


@pytest.mark.parametrize("version", ["schema-1", "schema-2"])
def test_attributes_of_before_the_first_release_are_read(version: str) -> None:
    """They had a model and a label only."""
    found = rows.operation(row(attributes=stored(version, "Subject")))
    assert found.subject == Subject(model="flowers", label="雛菊")
    assert found.created.timestamp() == 2000.0


@pytest.mark.parametrize("attributes", [None, [], "text", {"model": 5, "kind": {}}])
def test_attributes_that_cannot_be_read_leave_an_operation(attributes: Any) -> None:
    """It has its id, its time and nothing else."""
    found = rows.operation(row(attributes=attributes))
    assert (found.id, found.subject, found.outcome) == ("7", Subject(), None)
    assert shown(found).model == "models/"
    assert rows.size(row(attributes=attributes)) == 0


@pytest.mark.parametrize("accepted", [None, "yesterday", 1e300, float("nan")])
def test_a_time_that_is_none_is_no_error(accepted: Any) -> None:
    """The list goes on."""
    shown(rows.operation(row(attributes={**SUBJECT, "accepted": accepted})))


def test_a_stage_that_is_not_known_keeps_its_counts() -> None:
    """Done and total are shown, the stage is unset."""
    progress = {"stage": "distilling", "done": 3, "total": 9}
    found = rows.operation(row("PENDING"), progress=progress)
    assert found.progress == Progress(stage="", done=3, total=9)
    assert shown(found).stage == change_pb.CHANGE_STAGE_UNSPECIFIED


def test_a_result_keeps_what_can_be_read() -> None:
    """A value that is not known costs its own field only."""
    output = stored("0.1.0", "ChangeOutcome")
    whole = done(output).result
    assert whole is not None
    output["result"]["findings"][0]["severity"] = "catastrophe"
    found = done(output).result
    assert found is not None
    assert (found.revision, found.comparison, found.findings) == (7, whole.comparison, ())


@pytest.mark.parametrize("version", ["schema-1", "schema-2"])
def test_results_of_before_the_first_release_are_read(version: str) -> None:
    """Their revision, images and times are shown."""
    found = done(stored(version, "ChangeOutcome")).result
    assert found is not None
    assert (found.revision, found.images_used, found.seconds.solving) == (2, 12, 2.0)


def test_a_failure_of_a_class_that_is_not_known_keeps_its_message() -> None:
    """Class, reason and message are kept, even where the numbers cannot be read."""
    failure = {"kind": "Paused", "reason": "PAUSED", "message": "later", "comparison": 5}
    assert done({"failure": failure}).failure == Failure(
        kind="Paused", reason="PAUSED", message="later"
    )


@pytest.mark.parametrize("output", [None, "gAR9lC4=", [], {}, {"result": None, "failure": None}, 7])
def test_an_outcome_that_cannot_be_read_is_a_failure(output: Any) -> None:
    """It is finished, and its error says DATA_LOSS."""
    failure = done(output).failure
    assert failure is not None
    assert (failure.kind, failure.reason) == ("Corrupt", "DATA_LOSS")


def test_a_late_cancel_shows_what_can_be_read_of_the_result() -> None:
    """The revision serves, so that is what the operation gave."""
    late = {"revision": 3, "images_used": "many"}
    outcome = rows.operation(row("CANCELLED"), late=late).outcome
    assert outcome is not None
    assert outcome.result is not None
    assert (outcome.result.revision, outcome.result.images_used) == (3, 0)


def test_images_are_told_whatever_else_a_job_says() -> None:
    """``gc`` keeps the images of a change of any kind."""
    job = {"kind": "merge_classes", "uploads": [{"name": "a", "digest": "d1", "weight": 2}]}
    assert rows.uploads(row(input={"args": [job], "kwargs": {}})) == {"d1"}
    assert rows.uploads(row(input={"args": [{"kind": "retrain"}]})) == set()


@pytest.mark.parametrize(
    "given", [None, "text", {}, {"args": []}, {"args": ["x"]}, {"args": [{"uploads": [{}]}]}]
)
def test_images_that_cannot_be_told_are_corrupt(given: Any) -> None:
    """``gc`` must not take a job that it cannot read for one without images."""
    with pytest.raises(Corrupt, match="operation '7'"):
        rows.uploads(row(input=given))
