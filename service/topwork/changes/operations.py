"""Durable operations for the server: submit, find, list, watch, wait, cancel and delete.

The database stores them; the worker process (``topwork.changes.worker``) runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from dbos import WorkflowStatus

from topwork.bundle.store import Repository
from topwork.changes import rows
from topwork.changes.jobs import Job
from topwork.changes.polling import Poller
from topwork.changes.queue import PAGE_SIZE, PROGRESS, RESULT, OperationFilter, Queue
from topwork.changes.rows import OperationState, check_same, subject_of
from topwork.errors import NotFound, NotReady, Overloaded, TopworkError, Unavailable
from topwork.limits import DEFAULT_LIMITS, ServerLimits

WATCH_SECONDS = 0.05
"""Raising it delays the states of a watch, but reads the database less often."""

RETRY_SECONDS = 5.0
"""Raising it tells clients to wait longer after too many operations or watches."""

Admit: TypeAlias = Callable[[int], Awaitable[None]]
"""Takes the bytes of the images of a model's unfinished operations; may raise, to refuse more."""


class Operations:
    """The operations of a server's models."""

    def __init__(
        self, url: str, repository: Repository, limits: ServerLimits = DEFAULT_LIMITS
    ) -> None:
        self._queue = Queue(url, repository.storage)
        self._repository = repository
        self._limits = limits
        self._submitting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One call per model at a time counts the operations and adds its own."""
        self._closing = False
        self._poller = Poller(self._read_states, WATCH_SECONDS)

    async def start(self) -> None:
        """Create the schema if it is missing, and connect; see ``Queue.start``."""
        await self._queue.start()

    async def aclose(self) -> None:
        """Disconnect."""
        await self._poller.aclose()
        await self._queue.aclose()

    async def submit(
        self, job: Job, request_id: str, *, size: int = 0, admit: Admit | None = None
    ) -> OperationState:
        """Store ``job`` durably and return its operation; the same id gives the same operation.

        ``size`` is the length of its images in bytes. Raises the errors of ``admit``, AlreadyExists
        if the id was used for another request, and Overloaded at the limit of the model's
        unfinished operations.
        """
        subject = subject_of(job)
        async with self._submitting[job.model]:
            pending = await self.pending_bytes(job.model)
            if admit is not None:
                await admit(pending)
            if await self._queue.enqueue(job, request_id, size=size):
                return rows.queued(request_id, subject, job.accepted)
        operation = await self.get(request_id)
        check_same(operation, subject)
        return operation

    async def pending_bytes(self, model: str) -> int:
        """Return the length of all images of a model's unfinished operations, in bytes.

        Raises Overloaded at the limit of unfinished operations.
        """
        most = self._limits.max_pending_operations
        wanted = OperationFilter(attributes={"model": model}, done=False)
        unfinished = await self._queue.select(wanted, offset=0, limit=most)
        if len(unfinished) >= most:
            raise Overloaded(
                f"model {model!r} has {most} unfinished operations, which is the limit",
                retry_after=RETRY_SECONDS,
                reason="TOO_MANY_OPERATIONS",
            )
        return sum(map(rows.size, unfinished))

    async def find(self, identifier: str) -> OperationState | None:
        """Return an operation; None if there is none."""
        statuses = await self._queue.find([identifier])
        return await self._operation(statuses[0]) if statuses else None

    async def get(self, identifier: str) -> OperationState:
        """Return an operation. Raises NotFound."""
        operation = await self.find(identifier)
        if operation is None:
            raise no_operation(identifier)
        return operation

    async def list(
        self,
        wanted: OperationFilter,
        *,
        offset: int,
        limit: int,
        visible: Callable[[str], bool] | None = None,
    ) -> list[OperationState]:
        """Return the operations that match ``wanted``, of the ``visible`` models, oldest first."""
        statuses = await self._queue.select(wanted, offset=offset, limit=limit, visible=visible)
        return [await self._operation(status) for status in statuses]

    async def unfinished(self) -> Sequence[tuple[bool, float]]:
        """Return whether each unfinished operation runs, and when it was accepted.

        Times are in seconds since 1970. At most PAGE_SIZE operations, the oldest.
        """
        wanted = OperationFilter(attributes={}, done=False)
        return [
            (status.status == "PENDING", rows.operation(status).created.timestamp())
            for status in await self._queue.select(wanted, offset=0, limit=PAGE_SIZE)
        ]

    async def finished(self, since: datetime) -> Sequence[OperationState]:
        """Return the operations that finished after ``since``, at most PAGE_SIZE."""
        return [rows.operation(status) for status in await self._queue.finished(since)]

    async def _read_states(
        self, identifiers: Collection[str]
    ) -> dict[str, OperationState | Exception]:
        """Return each operation or its error, with one query, and one per running operation."""
        statuses = await self._queue.find(identifiers)
        operations: dict[str, OperationState | Exception] = {
            identifier: no_operation(identifier) for identifier in identifiers
        }
        for status in statuses:
            try:
                operations[status.workflow_id] = await self._operation(status)
            except TopworkError as failed:
                operations[status.workflow_id] = failed
        return operations

    async def cancel(self, identifier: str) -> None:
        """Cancel an unfinished operation before its next step. Raises NotFound."""
        if (await self.get(identifier)).outcome is None:
            await self._queue.cancel(identifier)

    async def delete(self, identifier: str) -> None:
        """Delete a finished operation. Raises NotFound, or NotReady if it is not finished."""
        if (await self.get(identifier)).outcome is None:
            raise NotReady(f"operation {identifier!r} is not finished; cancel it first")
        await self._queue.delete(identifier)

    async def watch(
        self, identifier: str, check: Callable[[OperationState], None] = lambda _: None
    ) -> AsyncIterator[OperationState]:
        """Yield an operation's state at once and after each change, until it is finished.

        ``check`` is called with each state that is read, changed or not, and may raise. Raises
        NotFound, and Unavailable when the server stops.
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
        """End all watches and waits with Unavailable."""
        self._closing = True

    async def wait(
        self,
        identifier: str,
        seconds: float | None,
        check: Callable[[OperationState], None] = lambda _: None,
    ) -> OperationState:
        """Return an operation when it is finished or after ``seconds``, whichever is first.

        See ``watch`` for ``check`` and the errors.
        """
        states = self.watch(identifier, check)
        operation = await anext(states)  # a state is read even if ``seconds`` is 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for state in states:
                    operation = state
        return operation

    async def _operation(self, status: WorkflowStatus) -> OperationState:
        progress = late = None
        if status.status == "PENDING":
            progress = await self._queue.event(status.workflow_id, PROGRESS)
        if status.status == "CANCELLED":
            late = await self._queue.event(status.workflow_id, RESULT)
            if late is not None and not await asyncio.to_thread(self._moved_pointer, status, late):
                late = None  # it was cancelled in time
        return rows.operation(status, progress=progress, late=late)

    def _moved_pointer(self, status: WorkflowStatus, late: Any) -> bool:
        """Return True if an operation made its result serve; False if that is unknown."""
        model = str(rows.attributes(status).get("model"))
        revision = rows.result(late).revision
        with contextlib.suppress(TopworkError):
            return self._repository.was_moved_by(model, status.workflow_id, revision)
        return False


def no_operation(identifier: str) -> NotFound:
    """Return the error of an operation that does not exist or is invisible to the caller."""
    name = f"operations/{identifier}"
    return NotFound(f"there is no operation {name!r}", kind="operation", resource=name)
