"""Durable operations: what the server asks of the worker, kept in a database until it is done.

The server enqueues and looks; the worker process (``topwork.changes.worker``) runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, TypeAlias

from dbos import WorkflowStatus

from topwork.bundle.store import Repository
from topwork.changes import rows
from topwork.changes.jobs import Job
from topwork.changes.polling import Poller
from topwork.changes.queue import PROGRESS, RESULT, OperationFilter, Queue
from topwork.changes.rows import OperationState, check_same, subject_of
from topwork.errors import NotFound, NotReady, Overloaded, TopworkError, Unavailable
from topwork.limits import DEFAULT_LIMITS, ServerLimits

WATCH_SECONDS = 0.05
"""How often a watched operation is looked at."""

RETRY_SECONDS = 5.0
"""When who found too many operations or watches may try again."""

Admit: TypeAlias = Callable[[int], Awaitable[None]]
"""Is told the bytes of the images of a model's unfinished operations, and may raise."""


class Operations:
    """All that a server asks and tells of operations."""

    def __init__(
        self, url: str, repository: Repository, limits: ServerLimits = DEFAULT_LIMITS
    ) -> None:
        self._queue = Queue(url, repository.root)
        self._repository = repository
        self._limits = limits
        self._submitting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One call a model looks how many operations there are, and then adds one."""
        self._closing = False
        self._poller = Poller(self._look, WATCH_SECONDS)

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

        ``size`` is the length of its images in bytes; ``admit`` may refuse it. Raises what
        ``admit`` raises, AlreadyExists if the id was used for something else, and Overloaded if
        the model has as many unfinished operations as it may have.
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

        Raises Overloaded if it has as many of them as it may have.
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
        found = await self._queue.find([identifier])
        return await self._operation(found[0]) if found else None

    async def get(self, identifier: str) -> OperationState:
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
    ) -> list[OperationState]:
        """Return the ``wanted`` operations of the ``visible`` models, oldest first."""
        found = await self._queue.select(wanted, offset=offset, limit=limit, visible=visible)
        return [await self._operation(one) for one in found]

    async def _look(self, identifiers: Collection[str]) -> dict[str, OperationState | Exception]:
        """Return each operation, or why there is none, with one query but for what runs."""
        found = await self._queue.find(identifiers)
        operations: dict[str, OperationState | Exception] = {
            identifier: no_operation(identifier) for identifier in identifiers
        }
        for status in found:
            try:
                operations[status.workflow_id] = await self._operation(status)
            except TopworkError as failed:
                operations[status.workflow_id] = failed
        return operations

    async def cancel(self, identifier: str) -> None:
        """Let an unfinished operation end, cancelled, before its next step. Raises NotFound."""
        if (await self.get(identifier)).outcome is None:
            await self._queue.cancel(identifier)

    async def delete(self, identifier: str) -> None:
        """Forget a finished operation. Raises NotFound, or NotReady if it is not finished."""
        if (await self.get(identifier)).outcome is None:
            raise NotReady(f"operation {identifier!r} is not finished; cancel it first")
        await self._queue.delete(identifier)

    async def watch(
        self, identifier: str, check: Callable[[OperationState], None] = lambda _: None
    ) -> AsyncIterator[OperationState]:
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
        check: Callable[[OperationState], None] = lambda _: None,
    ) -> OperationState:
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

    async def _operation(self, status: WorkflowStatus) -> OperationState:
        progress = late = None
        if status.status == "PENDING":
            progress = await self._queue.event(status.workflow_id, PROGRESS)
        if status.status == "CANCELLED":
            late = await self._queue.event(status.workflow_id, RESULT)
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


def no_operation(identifier: str) -> NotFound:
    """Return the error of an operation that is not there, or not for who asks."""
    name = f"operations/{identifier}"
    return NotFound(f"there is no operation {name!r}", kind="operation", resource=name)
