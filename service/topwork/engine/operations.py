"""Durable operations: what the server asks of the worker, kept in a database until it is done.

DBOS keeps them: a SQLite file in the repository by default, PostgreSQL by URL. The server enqueues
and looks; the worker process (``topwork.engine.worker``) runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from dbos import (
    DBOS,
    DBOSClient,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    WorkflowStatus,
    error,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from topwork.bundle import files
from topwork.bundle.limits import DEFAULT_LIMITS, Limits
from topwork.bundle.store import Repository
from topwork.engine.jobs import ChangeResult, Failure, Job, Kind, Outcome, Progress
from topwork.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    Unavailable,
)

log = structlog.get_logger(__name__)

QUEUE = "changes"
"""Partitioned by model: one model's changes run one at a time, different models' side by side."""

WORKER_CONCURRENCY = 2
"""Models that one worker changes at a time: bounds its memory."""

POLL_SECONDS = 0.09
"""How often a worker looks at the queue: the most that this adds to an operation."""

CHANGE = "change"
"""The one workflow: every kind of change takes the same steps."""

APPLICATION = "topwork"
APPLICATION_VERSION = "2"
"""Of the stored steps. A worker takes up only operations of its own; raise it when steps change."""

PROGRESS = "progress"
RESULT = "result"
"""Events of an operation: how far it is, and its result, stored just before its revision serves."""

WATCH_SECONDS = 0.05
"""How often a watched operation is looked at."""

SEARCHED = 1000
"""Operations that are read at a time where the database itself cannot tell which are wanted."""

RETRY_SECONDS = 5.0
"""When who found too many operations or watches may try again."""

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_UNFINISHED = ("ENQUEUED", "PENDING")
_FINISHED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an operation is about; as ``Job`` has it."""

    kind: Kind
    model: str
    label: str
    new_label: str
    validate_only: bool

    def __str__(self) -> str:
        """Say it in an error."""
        label = f" {self.label!r}" if self.label else ""
        renamed = f" to {self.new_label!r}" if self.new_label else ""
        only = " (validate only)" if self.validate_only else ""
        return f"{self.kind}{label}{renamed} of {self.model!r}{only}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which operations to list."""

    attributes: dict[str, str | bool]
    """Fields of ``Subject`` and what they must be."""
    done: bool | None = None
    """Whether they are finished; None: both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation's state at one moment."""

    id: str
    subject: Subject
    created: datetime
    ended: datetime | None
    progress: Progress
    outcome: Outcome | None
    """None while it is not finished."""


class Operations:
    """The server's side of the queue."""

    def __init__(self, url: str, repository: Repository, limits: Limits = DEFAULT_LIMITS) -> None:
        self._url = url
        self._repository = repository
        self._limits = limits
        self._submitting = asyncio.Lock()
        self._client: DBOSClient | None = None
        self._connecting = asyncio.Lock()
        self._closing = False

    async def start(self) -> None:
        """Create the schema if it is missing, and connect.

        A database that cannot be had is logged: what needs none goes on, and each call tries again.
        """
        try:
            await self._connect()
        except Unavailable as missing:
            log.error("no database", error=str(missing))

    async def aclose(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await asyncio.to_thread(self._client.destroy)

    async def submit(self, job: Job, request_id: str, *, size: int = 0) -> Operation:
        """Store ``job`` durably and return its operation; the same id gives the same operation.

        ``size`` is the length of its images in bytes. Raises AlreadyExists if the id was used for
        something else, and what ``check_room`` raises.
        """
        subject = subject_of(job)
        options: EnqueueOptions = {
            "queue_name": QUEUE,
            "workflow_name": CHANGE,
            "workflow_id": request_id,
            "queue_partition_key": job.model,
            # On SQLite DBOS orders by whole seconds. Milliseconds wrap every 24 days, when two
            # changes may swap places: harmless, since heads do not depend on the order.
            "priority": int(job.accepted * 1000) % 2**31 or 1,
            "app_version": APPLICATION_VERSION,
            "attributes": {**to_json(subject), "accepted": job.accepted, "bytes": size},
        }
        client = await self._connect()
        async with self._submitting:
            if await self._find(request_id) is None:
                await self.check_room(job.model)
                with _available():
                    await client.enqueue_async(options, to_json(job))
        operation = await self.get(request_id)
        check_same(operation, subject)
        return operation

    async def check_room(self, model: str) -> None:
        """Raise Overloaded if a model has as many unfinished operations as it may have."""
        most = self._limits.max_pending_operations
        if len(await self._unfinished(model)) >= most:
            raise Overloaded(
                f"model {model!r} has {most} unfinished operations, which is the limit",
                retry_after=RETRY_SECONDS,
                reason="TOO_MANY_OPERATIONS",
            )

    async def pending_bytes(self, model: str) -> int:
        """Return the length of all images of a model's unfinished operations, in bytes."""
        return sum((one.attributes or {}).get("bytes", 0) for one in await self._unfinished(model))

    async def get(self, identifier: str) -> Operation:
        """Return an operation. Raises NotFound."""
        found = await self._find(identifier)
        if found is None:
            raise no_operation(identifier)
        return await self._operation(found)

    async def list(
        self,
        wanted: Wanted,
        *,
        offset: int,
        limit: int,
        visible: Callable[[str], bool] | None = None,
    ) -> list[Operation]:
        """Return the ``wanted`` operations of the ``visible`` models, oldest first."""
        found = await self._statuses(wanted, offset=offset, limit=limit, visible=visible)
        return [await self._operation(one) for one in found]

    async def _unfinished(self, model: str) -> Sequence[WorkflowStatus]:
        wanted = Wanted(attributes={"model": model}, done=False)
        most = self._limits.max_pending_operations
        return await self._statuses(wanted, offset=0, limit=most)

    async def _find(self, identifier: str) -> WorkflowStatus | None:
        client = await self._connect()
        with _available():
            found = await client.list_workflows_async(workflow_ids=[identifier], load_input=False)
        return found[0] if found else None

    async def _statuses(
        self,
        wanted: Wanted,
        *,
        offset: int,
        limit: int,
        visible: Callable[[str], bool] | None = None,
    ) -> Sequence[WorkflowStatus]:
        if visible is not None or (wanted.attributes and self._url.startswith("sqlite")):
            return (await self._searched(wanted, offset + limit, visible))[offset:]
        return await self._listed(
            wanted.done, offset=offset, limit=limit, attributes=wanted.attributes
        )

    async def cancel(self, identifier: str) -> None:
        """Let an unfinished operation end, cancelled, before its next step. Raises NotFound."""
        if (await self.get(identifier)).outcome is None:
            client = await self._connect()
            with _available():
                await client.cancel_workflow_async(identifier)

    async def delete(self, identifier: str) -> None:
        """Forget a finished operation. Raises NotFound, or NotReady if it is not finished."""
        if (await self.get(identifier)).outcome is None:
            raise NotReady(f"operation {identifier!r} is not finished; cancel it first")
        client = await self._connect()
        with _available():
            await client.delete_workflow_async(identifier)

    async def watch(
        self, identifier: str, check: Callable[[Operation], None] = lambda _: None
    ) -> AsyncIterator[Operation]:
        """Yield an operation's state at once, then at each change, last when finished.

        Each look at it is told to ``check``, which may raise. Raises NotFound, and Unavailable when
        the server stops meanwhile.
        """
        last = None
        while True:
            operation = await self.get(identifier)
            check(operation)
            if operation != last:
                yield operation
            if operation.outcome is not None:
                return
            last = operation
            if self._closing:
                raise Unavailable("the server is stopping; watch again")
            await asyncio.sleep(WATCH_SECONDS)

    def end_watches(self) -> None:
        """Let everybody who watches or waits for an operation end with Unavailable."""
        self._closing = True

    async def wait(
        self,
        identifier: str,
        seconds: float | None,
        check: Callable[[Operation], None] = lambda _: None,
    ) -> Operation:
        """Return an operation when it is finished or after ``seconds``, whichever is first.

        For ``check`` and what is raised see ``watch``.
        """
        operation = await self.get(identifier)
        check(operation)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for state in self.watch(identifier, check):
                    operation = state
        return operation

    async def _searched(
        self, wanted: Wanted, count: int, visible: Callable[[str], bool] | None
    ) -> Sequence[WorkflowStatus]:
        """Return the first ``count`` wanted ones: DBOS cannot look for attributes on SQLite."""
        matching: Sequence[WorkflowStatus] = []
        looked_at = 0
        while len(matching) < count:
            page = await self._listed(wanted.done, offset=looked_at, limit=SEARCHED)
            matching = [
                *matching,
                *(
                    one
                    for one in page
                    if wanted.attributes.items() <= (one.attributes or {}).items()
                    and (visible is None or visible(str((one.attributes or {}).get("model"))))
                ),
            ]
            looked_at += len(page)
            if len(page) < SEARCHED:
                break
        return matching[:count]

    async def _listed(
        self,
        done: bool | None,
        *,
        offset: int,
        limit: int,
        attributes: dict[str, str | bool] | None = None,
    ) -> Sequence[WorkflowStatus]:
        status = {None: None, True: [*_FINISHED], False: [*_UNFINISHED]}[done]
        client = await self._connect()
        with _available():
            return await client.list_workflows_async(
                name=CHANGE,
                status=status,
                attributes=attributes or None,
                offset=offset,
                limit=limit,
                load_input=False,
            )

    async def _connect(self) -> DBOSClient:
        """Return the client, connected. Raises Unavailable."""
        async with self._connecting:
            if self._client is None:
                try:
                    await asyncio.to_thread(note_database, self._repository.root, self._url)
                except OSError as failed:
                    text = f"the repository cannot be written: {failed.strerror}"
                    raise Unavailable(text, reason="STORAGE") from failed
                with _available():
                    self._client = await asyncio.to_thread(connect, self._url)
            return self._client

    async def _operation(self, status: WorkflowStatus) -> Operation:
        attributes = dict(status.attributes or {})
        accepted = attributes.pop("accepted", (status.created_at or 0) / 1000)
        outcome = _outcome(status) if status.status in _FINISHED else None
        if status.status == "CANCELLED":
            late = await self._event(status, RESULT, ChangeResult)
            model = str(attributes.get("model"))
            if late is not None and await asyncio.to_thread(
                self._repository.was_moved_by, model, status.workflow_id
            ):
                outcome = Outcome(result=late)  # the cancel came too late
        progress = Progress(stage="queued" if outcome is None else "done")
        if status.status == "PENDING":
            progress = await self._event(status, PROGRESS, Progress) or progress
        ended = None
        if outcome is not None:
            # Many a SQLite tells whole seconds only.
            told = outcome.ended or (status.completed_at or status.updated_at or 0) / 1000
            ended = datetime.fromtimestamp(max(told, accepted), UTC)
        return Operation(
            id=status.workflow_id,
            subject=from_json(attributes, Subject),
            created=datetime.fromtimestamp(accepted, UTC),
            ended=ended,
            progress=progress,
            outcome=outcome,
        )

    async def _event(self, status: WorkflowStatus, key: str, kind: type[T]) -> T | None:
        client = await self._connect()
        with _available():
            found = await client.get_event_async(status.workflow_id, key, 0)
        return from_json(found, kind) if found is not None else None


def no_operation(identifier: str) -> NotFound:
    """Return the error of an operation that is not there, or not for who asks."""
    name = f"operations/{identifier}"
    return NotFound(f"there is no operation {name!r}", kind="operation", resource=name)


def subject_of(job: Job) -> Subject:
    """Return what ``job`` is about."""
    return Subject(
        kind=job.kind,
        model=job.model,
        label=job.label,
        new_label=job.new_label,
        validate_only=job.validate_only,
    )


def pending_images(url: str) -> set[str]:
    """Return the digests of the images that unfinished operations still need.

    Raises Unavailable.
    """
    with _available():
        client = connect(url)
        try:
            found = client.list_workflows(name=CHANGE, status=list(_UNFINISHED), load_input=True)
        finally:
            client.destroy()
    jobs = [from_json(one.input["args"][0], Job) for one in found if one.input]
    return {upload.digest for job in jobs for upload in job.uploads}


def new_request_id(given: str, *, field: str) -> str:
    """Return the id of a request: ``given``, in lower case, or a new one if it is empty.

    Raises InvalidInput if it is no UUID.
    """
    if not given:
        return str(uuid.uuid4())
    if not _UUID.fullmatch(given):  # uuid.UUID takes much else, such as 0x and other digits
        raise InvalidInput(f"request_id {given[:80]!r} is no UUID", field=field)
    return given.lower()


def check_same(operation: Operation, subject: Subject) -> None:
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


def database_url(root: Path) -> str:
    """Return the URL of the default database: a SQLite file in the repository."""
    return f"sqlite:///{root.absolute() / 'operations.sqlite'}"


def note_database(root: Path, url: str) -> None:
    """Let the repository say that its operations are elsewhere, before there is one.

    What kind of database it is, not its URL, which may have a password.
    """
    note = _note(root)
    if url != database_url(root) and not note.exists():
        files.write_file(note, f"{url.partition(':')[0]}\n".encode())


def noted_database(root: Path) -> str:
    """Return the kind of database elsewhere that the repository has operations in, or nothing."""
    note = _note(root)
    return note.read_text().strip() if note.exists() else ""


def to_json(value: object) -> Any:
    """Return a dataclass of ``topwork.engine.jobs`` as JSON data."""
    return msgspec.to_builtins(value)


def from_json(data: Any, kind: type[T]) -> T:
    """Return the ``kind`` that ``to_json`` gave."""
    return msgspec.convert(data, kind)


@contextlib.contextmanager
def _available() -> Iterator[None]:
    """Raise Unavailable for what a database that is away, full or read-only raises."""
    try:
        yield
    except (SQLAlchemyError, error.DBOSException, OSError) as failed:
        raise Unavailable(
            f"the database of operations cannot be used now: {cause_of(failed)}", reason="DATABASE"
        ) from failed


def cause_of(failed: Exception) -> str:
    """Return what a database said, without the statement that it said it of."""
    return str(failed.orig if isinstance(failed, DBAPIError) else failed)


def prepare(url: str) -> None:
    """Create the schema and the queue where they are missing. Raises Unavailable."""
    with _available():
        connect(url).destroy()


def connect(url: str) -> DBOSClient:
    """Return a client of the database, whose schema and queue are there from then on."""
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    DBOS.migrate(url)  # as run_dbos_database_migrations does, which says of any error only Exit
    client = DBOSClient(
        system_database_url=url,
        application_name=APPLICATION,
        retry_connection_errors=False,  # who calls is told, and may try another server
        # The default pickles; what is read here must never be able to run code.
        serializer=DBOSPortableJSONSerializer(),
    )
    # Before a worker starts: it looks for new queues only once a second.
    client.register_queue(
        QUEUE,
        partition_concurrency=1,
        worker_concurrency=WORKER_CONCURRENCY,
        polling_interval_sec=POLL_SECONDS,
    )
    return client


def _note(root: Path) -> Path:
    return root / "operations.database"


def _outcome(status: WorkflowStatus) -> Outcome:
    if status.status == "SUCCESS":
        return from_json(status.output, Outcome)
    if status.status == "CANCELLED":
        failure = Failure(kind="Cancelled", reason="CANCELLED", message="cancelled on request")
    else:
        failure = Failure(
            kind="Internal", reason="INTERNAL", message="internal error; see the worker's log"
        )
    return Outcome(failure=failure)
