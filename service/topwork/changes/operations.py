"""Durable operations: what the server asks of the worker, kept in a database until it is done.

The server enqueues and looks; the worker process (``topwork.changes.worker``) runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog
from dbos import DBOSClient, EnqueueOptions, WorkflowStatus, error

from topwork.bundle.documents import to_data
from topwork.bundle.store import Repository
from topwork.changes import rows
from topwork.changes.database import CHANGE, QUEUE, available, connect, note_database
from topwork.changes.jobs import Job
from topwork.changes.polling import Poller
from topwork.changes.rows import Operation, check_same, subject_of
from topwork.errors import (
    NotFound,
    NotReady,
    Overloaded,
    TopworkError,
    Unavailable,
)
from topwork.limits import DEFAULT_LIMITS, Limits

log = structlog.get_logger(__name__)

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


Admit: TypeAlias = Callable[[int], Awaitable[None]]
"""Is told the bytes of the images of a model's unfinished operations, and may raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFilter:
    """Which operations to list."""

    attributes: dict[str, str | bool]
    """Fields of ``Subject`` and what they must be."""
    done: bool | None = None
    """Whether they are finished; None: both."""


class Operations:
    """The server's side of the queue."""

    def __init__(self, url: str, repository: Repository, limits: Limits = DEFAULT_LIMITS) -> None:
        self._url = url
        self._repository = repository
        self._limits = limits
        self._submitting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One call a model looks how many operations there are, and then adds one."""
        self._client: DBOSClient | None = None
        self._connecting = asyncio.Lock()
        self._closing = False
        self._poller = Poller(self._look, WATCH_SECONDS)

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
        await self._poller.aclose()
        if self._client is not None:
            await asyncio.to_thread(self._client.destroy)

    async def submit(
        self, job: Job, request_id: str, *, size: int = 0, admit: Admit | None = None
    ) -> Operation:
        """Store ``job`` durably and return its operation; the same id gives the same operation.

        ``size`` is the length of its images in bytes; ``admit`` may refuse it. Raises what
        ``admit`` raises, AlreadyExists if the id was used for something else, and Overloaded if
        the model has as many unfinished operations as it may have.
        """
        subject = subject_of(job)
        options: EnqueueOptions = {
            "queue_name": QUEUE,
            "workflow_name": CHANGE,
            "workflow_id": request_id,
            "workflow_id_reuse_policy": "reject",
            "queue_partition_key": job.model,
            # On SQLite DBOS orders by whole seconds. Milliseconds wrap every 24 days, when two
            # changes may swap places: harmless, since heads do not depend on the order.
            "priority": int(job.accepted * 1000) % 2**31 or 1,
            "app_version": APPLICATION_VERSION,
            "attributes": {**to_data(subject), "accepted": job.accepted, "bytes": size},
        }
        async with self._submitting[job.model]:
            pending = await self.pending_bytes(job.model)
            if admit is not None:
                await admit(pending)
            if await self._enqueue(options, to_data(job)):
                return rows.queued(request_id, subject, job.accepted)
        operation = await self.get(request_id)
        check_same(operation, subject)
        return operation

    async def _enqueue(self, options: EnqueueOptions, job: Any) -> bool:
        """Store an operation durably; return whether its id is new."""
        client = await self._connect()
        with available():
            try:
                await client.enqueue_async(options, job)
            except error.DBOSWorkflowIDInUseError:
                return False
        return True

    async def pending_bytes(self, model: str) -> int:
        """Return the length of all images of a model's unfinished operations, in bytes.

        Raises Overloaded if it has as many of them as it may have.
        """
        most = self._limits.max_pending_operations
        wanted = OperationFilter(attributes={"model": model}, done=False)
        unfinished = await self._statuses(wanted, offset=0, limit=most)
        if len(unfinished) >= most:
            raise Overloaded(
                f"model {model!r} has {most} unfinished operations, which is the limit",
                retry_after=RETRY_SECONDS,
                reason="TOO_MANY_OPERATIONS",
            )
        return sum(map(rows.size, unfinished))

    async def find(self, identifier: str) -> Operation | None:
        """Return an operation; None if there is none."""
        found = await self._find(identifier)
        return None if found is None else await self._operation(found)

    async def get(self, identifier: str) -> Operation:
        """Return an operation. Raises NotFound."""
        found = await self.find(identifier)
        if found is None:
            raise no_operation(identifier)
        return found

    async def list(
        self,
        wanted: OperationFilter,
        *,
        offset: int,
        limit: int,
        visible: Callable[[str], bool] | None = None,
    ) -> list[Operation]:
        """Return the ``wanted`` operations of the ``visible`` models, oldest first."""
        found = await self._statuses(wanted, offset=offset, limit=limit, visible=visible)
        return [await self._operation(one) for one in found]

    async def _look(self, identifiers: Collection[str]) -> dict[str, Operation | Exception]:
        """Return each operation, or why there is none, with one query but for what runs."""
        client = await self._connect()
        with available():
            found = await client.list_workflows_async(workflow_ids=[*identifiers], load_input=False)
        operations: dict[str, Operation | Exception] = {
            identifier: no_operation(identifier) for identifier in identifiers
        }
        for status in found:
            try:
                operations[status.workflow_id] = await self._operation(status)
            except TopworkError as failed:
                operations[status.workflow_id] = failed
        return operations

    async def _find(self, identifier: str) -> WorkflowStatus | None:
        client = await self._connect()
        with available():
            found = await client.list_workflows_async(workflow_ids=[identifier], load_input=False)
        return found[0] if found else None

    async def _statuses(
        self,
        wanted: OperationFilter,
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
            with available():
                await client.cancel_workflow_async(identifier)

    async def delete(self, identifier: str) -> None:
        """Forget a finished operation. Raises NotFound, or NotReady if it is not finished."""
        if (await self.get(identifier)).outcome is None:
            raise NotReady(f"operation {identifier!r} is not finished; cancel it first")
        client = await self._connect()
        with available():
            await client.delete_workflow_async(identifier)

    async def watch(
        self, identifier: str, check: Callable[[Operation], None] = lambda _: None
    ) -> AsyncIterator[Operation]:
        """Yield an operation's state at once, then at each change, last when finished.

        Each look at it is told to ``check``, which may raise. Raises NotFound, and Unavailable when
        the server stops meanwhile.
        """
        last, operation = None, await self.get(identifier)
        while True:
            check(operation)
            if operation != last:
                yield operation
            if operation.outcome is not None:
                return
            last = operation
            if self._closing:
                raise Unavailable("the server is stopping; watch again")
            operation = await self._poller.next(identifier)

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
        self, wanted: OperationFilter, count: int, visible: Callable[[str], bool] | None
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
                    if wanted.attributes.items() <= rows.attributes(one).items()
                    and (visible is None or visible(str(rows.attributes(one).get("model"))))
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
        status = {None: None, True: [*rows.FINISHED], False: [*rows.UNFINISHED]}[done]
        client = await self._connect()
        with available():
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
                with available():
                    self._client = await asyncio.to_thread(connect, self._url)
            return self._client

    async def _operation(self, status: WorkflowStatus) -> Operation:
        progress = late = None
        if status.status == "PENDING":
            progress = await self._event(status, PROGRESS)
        if status.status == "CANCELLED":
            late = await self._event(status, RESULT)
            if late is not None and not await asyncio.to_thread(self._has_moved, status, late):
                late = None  # the cancel came in time
        return rows.operation(status, progress=progress, late=late)

    def _has_moved(self, status: WorkflowStatus, late: Any) -> bool:
        """Return whether an operation made its result serve; False where nobody can tell."""
        model = str(rows.attributes(status).get("model"))
        revision = rows.result(late).revision
        with contextlib.suppress(TopworkError):
            return self._repository.was_moved_by(model, status.workflow_id, revision)
        return False

    async def _event(self, status: WorkflowStatus, key: str) -> Any:
        client = await self._connect()
        with available():
            return await client.get_event_async(status.workflow_id, key, 0)


def no_operation(identifier: str) -> NotFound:
    """Return the error of an operation that is not there, or not for who asks."""
    name = f"operations/{identifier}"
    return NotFound(f"there is no operation {name!r}", kind="operation", resource=name)
