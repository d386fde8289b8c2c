"""Durable operations: what the server asks of the worker, kept in a database until it is done.

DBOS keeps them: a SQLite file in the repository by default, PostgreSQL by URL. The server enqueues
and looks; the worker process (``topwork.engine.worker``) runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from dbos import (
    DBOSClient,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    WorkflowStatus,
    run_dbos_database_migrations,
)

from topwork.engine.jobs import AddClassJob, AddClassResult, Failure, Outcome, Progress
from topwork.errors import AlreadyExists, InvalidInput, NotFound, NotReady, Unavailable

QUEUE = "changes"
"""Partitioned by model: one model's changes run one at a time, different models' side by side."""

WORKER_CONCURRENCY = 2
"""Models that one worker changes at a time: bounds its memory."""

POLL_SECONDS = 0.09
"""How often a worker looks at the queue: the most that this adds to an operation."""

ADD_CLASS = "add_class"
APPLICATION = "topwork"
APPLICATION_VERSION = "1"
"""Of the stored steps. A worker takes up only operations of its own; raise it when steps change."""

PROGRESS = "progress"
RESULT = "result"
"""Events of an operation: how far it is, and the result once its revision serves."""

WATCH_SECONDS = 0.05
"""How often a watched operation is looked at."""

_FINISHED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation's state at one moment."""

    id: str
    model: str
    label: str
    created: datetime
    progress: Progress
    outcome: Outcome | None
    """None while it is not finished."""


class Operations:
    """The server's side of the queue."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: DBOSClient | None = None
        self._closing = False

    async def start(self) -> None:
        """Create the schema if it is missing, and connect."""
        self._client = await asyncio.to_thread(_connect, self._url)

    async def aclose(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await asyncio.to_thread(self._client.destroy)

    async def add_class(self, job: AddClassJob, request_id: str) -> Operation:
        """Store ``job`` durably and return its operation; the same id gives the same operation.

        Raises AlreadyExists if the id was used for another label or model.
        """
        options: EnqueueOptions = {
            "queue_name": QUEUE,
            "workflow_name": ADD_CLASS,
            "workflow_id": request_id,
            "queue_partition_key": job.model,
            # On SQLite DBOS orders by whole seconds. Milliseconds wrap every 24 days, when two
            # changes may swap places: harmless, since heads do not depend on the order.
            "priority": int(job.accepted * 1000) % 2**31 or 1,
            "app_version": APPLICATION_VERSION,
            "attributes": {"model": job.model, "label": job.label},
        }
        await self._connected.enqueue_async(options, to_json(job))
        operation = await self.get(request_id)
        check_same(operation, job.model, job.label)
        return operation

    async def get(self, identifier: str) -> Operation:
        """Return an operation. Raises NotFound."""
        found = await self._connected.list_workflows_async(
            workflow_ids=[identifier], load_input=False
        )
        if not found:
            raise NotFound(
                f"there is no operation {f'operations/{identifier}'!r}",
                kind="operation",
                resource=f"operations/{identifier}",
            )
        return await self._operation(found[0])

    async def list(self, *, offset: int, limit: int) -> list[Operation]:
        """Return operations, oldest first."""
        found = await self._connected.list_workflows_async(
            name=ADD_CLASS, offset=offset, limit=limit, load_input=False
        )
        return [await self._operation(status) for status in found]

    async def cancel(self, identifier: str) -> None:
        """Let an unfinished operation end, cancelled, before its next step. Raises NotFound."""
        if (await self.get(identifier)).outcome is None:
            await self._connected.cancel_workflow_async(identifier)

    async def delete(self, identifier: str) -> None:
        """Forget a finished operation. Raises NotFound, or NotReady if it is not finished."""
        if (await self.get(identifier)).outcome is None:
            raise NotReady(f"operation {identifier!r} is not finished; cancel it first")
        await self._connected.delete_workflow_async(identifier)

    async def watch(self, identifier: str) -> AsyncIterator[Operation]:
        """Yield an operation's state at once, then at each change, last when finished.

        Raises NotFound, or Unavailable when the server stops meanwhile.
        """
        last = None
        while True:
            operation = await self.get(identifier)
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

    async def wait(self, identifier: str, seconds: float | None) -> Operation:
        """Return an operation when it is finished or after ``seconds``, whichever is first."""
        operation = await self.get(identifier)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for state in self.watch(identifier):
                    operation = state
        return operation

    @property
    def _connected(self) -> DBOSClient:
        assert self._client is not None, "start() comes first"
        return self._client

    async def _operation(self, status: WorkflowStatus) -> Operation:
        attributes = status.attributes or {}
        outcome = _outcome(status) if status.status in _FINISHED else None
        if status.status == "CANCELLED":
            served = await self._connected.get_event_async(status.workflow_id, RESULT, 0)
            if served is not None:  # the cancel came too late
                outcome = Outcome(result=from_json(served, AddClassResult))
        progress = Progress(stage="queued" if outcome is None else "done")
        if status.status == "PENDING":
            event = await self._connected.get_event_async(status.workflow_id, PROGRESS, 0)
            progress = from_json(event, Progress) if event is not None else progress
        return Operation(
            id=status.workflow_id,
            model=str(attributes.get("model", "")),
            label=str(attributes.get("label", "")),
            created=datetime.fromtimestamp((status.created_at or 0) / 1000, UTC),
            progress=progress,
            outcome=outcome,
        )


def new_request_id(given: str) -> str:
    """Return the id of a request: ``given``, in lower case, or a new one if it is empty.

    Raises InvalidInput if it is no UUID.
    """
    if not given:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(given))
    except ValueError:
        raise InvalidInput(
            f"request_id {given[:80]!r} is no UUID", field="config.request_id"
        ) from None


def check_same(operation: Operation, model: str, label: str) -> None:
    """Raise AlreadyExists unless ``operation`` is about this model and label."""
    if (operation.model, operation.label) != (model, label):
        raise AlreadyExists(
            f"request_id {operation.id!r} was used to add {operation.label!r} to "
            f"{operation.model!r}, not {label!r} to {model!r}",
            kind="operation",
            resource=f"operations/{operation.id}",
            reason="REQUEST_ID_REUSED",
        )


def database_url(root: Path) -> str:
    """Return the URL of the default database: a SQLite file in the repository."""
    return f"sqlite:///{root.absolute() / 'operations.sqlite'}"


def to_json(value: object) -> Any:
    """Return a dataclass of ``topwork.engine.jobs`` as JSON data."""
    return msgspec.to_builtins(value)


def from_json(data: Any, kind: type[T]) -> T:
    """Return the ``kind`` that ``to_json`` gave."""
    return msgspec.convert(data, kind)


def _connect(url: str) -> DBOSClient:
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    run_dbos_database_migrations(url)
    client = DBOSClient(
        system_database_url=url,
        application_name=APPLICATION,
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
