"""Rows of the database of operations, read tolerantly: another version may have written them.

Fields that cannot be read have their defaults, so that a row never breaks a list.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from dbos import WorkflowStatus

from topwork.bundle.documents import document, from_data
from topwork.bundle.numbers import Number
from topwork.changes.jobs import (
    ChangeKind,
    ChangeOutcome,
    ChangeResult,
    EvaluationJob,
    Failure,
    Job,
    Progress,
)
from topwork.changes.kinds import named_labels
from topwork.errors import AlreadyExists, Corrupt
from topwork.storage.files import sha256

UNFINISHED = ("ENQUEUED", "DELAYED", "PENDING")
FINISHED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

T = TypeVar("T")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The subject of an operation: fields of its ``Job`` that it can be found by."""

    kind: ChangeKind | Literal[""] = ""
    """Empty: a kind of a newer version."""
    model: str = ""
    label: str = ""
    labels: tuple[str, ...] = ()
    new_label: str = ""
    validate_only: bool = False
    digests: str = ""
    """sha256 of the job's image digests, in hexadecimal; empty if it has none."""
    evaluation_set: str = ""
    revision: Number = 0
    """Evaluated revision; 0: the serving one."""
    compared: Number = 0

    def __str__(self) -> str:
        """Describe it for an error message."""
        label = f" {self.label!r}" if self.label else ""
        label += f" of {named_labels(self.labels)}" if self.labels else ""
        renamed = f" to {self.new_label!r}" if self.new_label else ""
        only = " (validate only)" if self.validate_only else ""
        examples = f" of the examples {self.digests[:12]}" if self.digests else ""
        revision = f" of revision {self.revision}" if self.revision else ""
        compared = f", compared with {self.compared}," if self.compared else ""
        on = f" on the evaluation set {self.evaluation_set!r}" if self.evaluation_set else ""
        evaluated = f"{revision}{compared}{on}"
        what = f"{self.kind or 'a change'}{label}{renamed}{examples}{evaluated}"
        return f"{what} of {self.model!r}{only}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationState:
    """The state of an operation at one moment."""

    id: str
    subject: Subject
    created: datetime
    ended: datetime | None
    progress: Progress
    outcome: ChangeOutcome | None
    """None while it is not finished."""


def subject_of(job: Job) -> Subject:
    """Return the subject of ``job``."""
    evaluation = job.evaluation or EvaluationJob()
    return Subject(
        kind=job.kind,
        model=job.model,
        label=job.label,
        labels=job.labels,
        new_label=job.new_label,
        validate_only=job.validate_only,
        digests=sha256("".join(job.digests).encode()) if job.digests else "",
        evaluation_set=evaluation.name,
        revision=evaluation.revision,
        compared=evaluation.compare,
    )


def check_same(operation: OperationState, subject: Subject) -> None:
    """Raise AlreadyExists unless ``operation`` has this ``subject``.

    The error hides the subject of another model, which the caller may have no rights to.
    """
    if operation.subject != subject:
        actual = str(operation.subject)
        if operation.subject.model != subject.model:
            actual = "a change of another model"
        raise AlreadyExists(
            f"request_id {operation.id!r} was used for {actual}, not {subject}",
            kind="operation",
            resource=f"operations/{operation.id}",
            reason="REQUEST_ID_REUSED",
        )


def queued(identifier: str, subject: Subject, accepted: float) -> OperationState:
    """Return a queued operation; ``accepted`` is in seconds since 1970."""
    return OperationState(
        id=identifier,
        subject=subject,
        created=_moment(accepted),
        ended=None,
        progress=Progress(stage="queued"),
        outcome=None,
    )


def operation(row: WorkflowStatus, *, progress: Any = None, late: Any = None) -> OperationState:
    """Convert a row.

    ``progress`` is its stored progress, and ``late`` the stored result of an operation that was
    cancelled after it had moved the serving pointer; None: not stored.
    """
    accepted = attributes(row).get("accepted")
    if not isinstance(accepted, int | float):
        accepted = (row.created_at or 0) / 1000
    outcome = None
    if late is not None:
        outcome = ChangeOutcome(result=result(late))
    elif row.status in FINISHED:
        outcome = _outcome(row)
    stage: Literal["queued", "done"] = "queued" if outcome is None else "done"
    ended = None
    if outcome is not None:
        seconds = outcome.ended or (row.completed_at or row.updated_at or 0) / 1000
        ended = _moment(max(seconds, accepted))  # some SQLite versions truncate to whole seconds
    return OperationState(
        id=row.workflow_id,
        subject=_readable(attributes(row), Subject),
        created=_moment(accepted),
        ended=ended,
        progress=Progress(stage=stage) if progress is None else _readable(progress, Progress),
        outcome=outcome,
    )


def attributes(row: WorkflowStatus) -> dict[str, Any]:
    """Return the attributes that an operation is found by: fields of ``Subject``, and others."""
    stored: Any = row.attributes
    return stored if isinstance(stored, dict) else {}


def result(data: Any) -> ChangeResult:
    """Return the readable fields of a change's result."""
    return _readable(data, ChangeResult)


def size(row: WorkflowStatus) -> int:
    """Return the length of an operation's images in bytes."""
    length = attributes(row).get("bytes")
    return length if isinstance(length, int) else 0


def uploads(row: WorkflowStatus) -> set[str]:
    """Return the digests of an operation's images. Raises Corrupt if they cannot be read."""
    try:
        stored: Any = row.input
        return {str(upload["digest"]) for upload in stored["args"][0].get("uploads", ())}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise Corrupt(f"the images of operation {row.workflow_id!r} cannot be read") from error


def _outcome(row: WorkflowStatus) -> ChangeOutcome:
    if row.status == "SUCCESS":
        return _succeeded(row.output)
    if row.status == "CANCELLED":
        failure = Failure(kind="Cancelled", reason="CANCELLED", message="cancelled on request")
    else:
        failure = Failure(
            kind="Internal", reason="INTERNAL", message="internal error; see the worker's log"
        )
    return ChangeOutcome(failure=failure)


def _succeeded(output: Any) -> ChangeOutcome:
    """Return the outcome in a workflow's output; an unreadable output is a failure, Corrupt."""
    with contextlib.suppress(Corrupt):
        outcome = from_data(output, ChangeOutcome)
        if outcome != ChangeOutcome(ended=outcome.ended):
            return outcome
    fields = output if isinstance(output, dict) else {}
    if isinstance(fields.get("result"), dict):
        return ChangeOutcome(result=result(fields["result"]))
    if isinstance(fields.get("failure"), dict):
        return ChangeOutcome(failure=_readable(fields["failure"], Failure))
    text = "the stored outcome cannot be read"
    return ChangeOutcome(failure=Failure(kind="Corrupt", reason=Corrupt.reason, message=text))


def _readable(data: Any, kind: type[T]) -> T:
    """Convert ``data`` to a ``kind`` of fields with defaults; drops the unreadable fields."""
    with contextlib.suppress(Corrupt):
        return from_data(data, kind)
    readable: dict[str, Any] = {}
    for name, value in data.items() if isinstance(data, dict) else ():
        with contextlib.suppress(Corrupt):
            from_data({name: value}, kind)
            readable[name] = value
    return from_data(readable, kind)


def _moment(seconds: float) -> datetime:
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromtimestamp(seconds, UTC)
    return datetime.fromtimestamp(0, UTC)
