"""Rows of the database of operations, read tolerantly: another version may have written them.

Of a value that cannot be read as a whole its readable fields are shown, and the defaults of the
others. So one row never breaks a list.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from dbos import WorkflowStatus

from topwork.bundle.documents import document, from_data
from topwork.changes.jobs import ChangeKind, ChangeOutcome, ChangeResult, Failure, Job, Progress
from topwork.errors import AlreadyExists, Corrupt

UNFINISHED = ("ENQUEUED", "DELAYED", "PENDING")
FINISHED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

T = TypeVar("T")


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an operation is about; as ``Job`` has it."""

    kind: ChangeKind | Literal[""] = ""
    """Empty: one that this version does not know."""
    model: str = ""
    label: str = ""
    new_label: str = ""
    validate_only: bool = False

    def __str__(self) -> str:
        """Say it in an error."""
        label = f" {self.label!r}" if self.label else ""
        renamed = f" to {self.new_label!r}" if self.new_label else ""
        only = " (validate only)" if self.validate_only else ""
        return f"{self.kind or 'a change'}{label}{renamed} of {self.model!r}{only}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationState:
    """An operation's state at one moment."""

    id: str
    subject: Subject
    created: datetime
    ended: datetime | None
    progress: Progress
    outcome: ChangeOutcome | None
    """None while it is not finished."""


def subject_of(job: Job) -> Subject:
    """Return what ``job`` is about."""
    return Subject(
        kind=job.kind,
        model=job.model,
        label=job.label,
        new_label=job.new_label,
        validate_only=job.validate_only,
    )


def check_same(operation: OperationState, subject: Subject) -> None:
    """Raise AlreadyExists unless ``operation`` is about this very ``subject``.

    What it is about instead is told only of the same model: the caller may have no other.
    """
    if operation.subject != subject:
        theirs = str(operation.subject)
        if operation.subject.model != subject.model:
            theirs = "a change of another model"
        raise AlreadyExists(
            f"request_id {operation.id!r} was used for {theirs}, not {subject}",
            kind="operation",
            resource=f"operations/{operation.id}",
            reason="REQUEST_ID_REUSED",
        )


def queued(identifier: str, subject: Subject, accepted: float) -> OperationState:
    """Return an operation that was ``accepted`` just now, in seconds since 1970."""
    return OperationState(
        id=identifier,
        subject=subject,
        created=_moment(accepted),
        ended=None,
        progress=Progress(stage="queued"),
        outcome=None,
    )


def operation(row: WorkflowStatus, *, progress: Any = None, late: Any = None) -> OperationState:
    """Return the operation that a row is.

    ``progress`` is its stored progress, and ``late`` the stored result of a cancelled one that had
    moved the serving pointer before; None where there is none.
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
        # Many a SQLite tells whole seconds only.
        told = outcome.ended or (row.completed_at or row.updated_at or 0) / 1000
        ended = _moment(max(told, accepted))
    return OperationState(
        id=row.workflow_id,
        subject=_readable(attributes(row), Subject),
        created=_moment(accepted),
        ended=ended,
        progress=Progress(stage=stage) if progress is None else _readable(progress, Progress),
        outcome=outcome,
    )


def attributes(row: WorkflowStatus) -> dict[str, Any]:
    """Return what an operation can be found by: the fields of ``Subject``, and others."""
    found: Any = row.attributes
    return found if isinstance(found, dict) else {}


def result(data: Any) -> ChangeResult:
    """Return the result of a change, as far as it can be read."""
    return _readable(data, ChangeResult)


def size(row: WorkflowStatus) -> int:
    """Return the length of an operation's images in bytes."""
    found = attributes(row).get("bytes")
    return found if isinstance(found, int) else 0


def uploads(row: WorkflowStatus) -> set[str]:
    """Return the digests of an operation's images. Raises Corrupt if they cannot be told."""
    try:
        stored: Any = row.input
        return {str(upload["digest"]) for upload in stored["args"][0].get("uploads", ())}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise Corrupt(f"the images of operation {row.workflow_id!r} cannot be told") from error


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
    """Return the outcome that a workflow gave. What cannot be read at all is a failure: Corrupt."""
    with contextlib.suppress(Corrupt):
        found = from_data(output, ChangeOutcome)
        if found != ChangeOutcome(ended=found.ended):
            return found
    given = output if isinstance(output, dict) else {}
    if isinstance(given.get("result"), dict):
        return ChangeOutcome(result=result(given["result"]))
    if isinstance(given.get("failure"), dict):
        return ChangeOutcome(failure=_readable(given["failure"], Failure))
    text = "the stored outcome cannot be read"
    return ChangeOutcome(failure=Failure(kind="Corrupt", reason=Corrupt.reason, message=text))


def _readable(data: Any, kind: type[T]) -> T:
    """Return ``data`` as a ``kind`` whose fields all have defaults, without what cannot be read."""
    with contextlib.suppress(Corrupt):
        return from_data(data, kind)
    kept: dict[str, Any] = {}
    for name, value in data.items() if isinstance(data, dict) else ():
        with contextlib.suppress(Corrupt):
            from_data({name: value}, kind)
            kept[name] = value
    return from_data(kept, kind)


def _moment(seconds: float) -> datetime:
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromtimestamp(seconds, UTC)
    return datetime.fromtimestamp(0, UTC)
