"""Queue of operations in the database: enqueue, select, cancel and delete, by DBOS's client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from dbos import DBOSClient, WorkflowStatus, error

from topwork.bundle.documents import to_data
from topwork.changes import rows
from topwork.changes.database import CHANGE, QUEUE, available, connect, note_database
from topwork.changes.jobs import Job
from topwork.errors import Unavailable
from topwork.storage.storage import Storage

log = structlog.get_logger(__name__)

APPLICATION_VERSION = "2"
"""Raise it when stored steps change: a worker runs only operations of its own version."""

PROGRESS = "progress"
RESULT = "result"
"""Events of an operation: progress, and the result, stored just before its revision serves."""

PAGE_SIZE = 1000
"""Raising it reads more operations per query when SQLite cannot filter them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFilter:
    """Filter for lists of operations."""

    attributes: dict[str, str | bool]
    """Required values of fields of ``Subject``."""
    done: bool | None = None
    """True: only finished operations; False: only unfinished; None: both."""


class Queue:
    """The server's side of the queue. All methods except ``start`` raise Unavailable."""

    def __init__(self, url: str, storage: Storage) -> None:
        """Take the database's URL and the repository's storage."""
        self._url = url
        self._storage = storage
        self._client: DBOSClient | None = None
        self._connecting = asyncio.Lock()

    async def start(self) -> None:
        """Create the schema if it is missing, and connect.

        An unavailable database is logged: Classify continues, and each call connects again.
        """
        try:
            await self._connect()
        except Unavailable as missing:
            log.error("no database", error=str(missing))

    async def aclose(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await asyncio.to_thread(self._client.destroy)

    async def enqueue(self, job: Job, request_id: str, *, size: int) -> bool:
        """Store an operation durably; return True if its id is new.

        ``size`` is the length of its images in bytes.
        """
        client = await self._connect()
        with available():
            try:
                await client.enqueue_async(
                    {
                        "queue_name": QUEUE,
                        "workflow_name": CHANGE,
                        "workflow_id": request_id,
                        "workflow_id_reuse_policy": "reject",
                        "queue_partition_key": job.model,
                        # Milliseconds, because DBOS orders by whole seconds on SQLite. They wrap
                        # every 24 days, when two changes may swap places: heads do not depend on
                        # the order.
                        "priority": int(job.accepted * 1000) % 2**31 or 1,
                        "app_version": APPLICATION_VERSION,
                        "attributes": {
                            **to_data(rows.subject_of(job)),
                            "accepted": job.accepted,
                            "bytes": size,
                        },
                    },
                    to_data(job),
                )
            except error.DBOSWorkflowIDInUseError:
                return False
        return True

    async def find(self, identifiers: Collection[str]) -> Sequence[WorkflowStatus]:
        """Return the operations that exist, in any order."""
        client = await self._connect()
        with available():
            return await client.list_workflows_async(workflow_ids=[*identifiers], load_input=False)

    async def select(
        self,
        wanted: OperationFilter,
        *,
        offset: int,
        limit: int,
        visible: Callable[[str], bool] | None = None,
    ) -> Sequence[WorkflowStatus]:
        """Return the operations that match ``wanted``, of the ``visible`` models, oldest first."""
        if visible is not None or (wanted.attributes and self._url.startswith("sqlite")):
            return (await self._search(wanted, offset + limit, visible))[offset:]
        return await self._list(
            wanted.done, offset=offset, limit=limit, attributes=wanted.attributes
        )

    async def finished(self, since: datetime) -> Sequence[WorkflowStatus]:
        """Return the operations that finished after ``since``, at most PAGE_SIZE."""
        client = await self._connect()
        with available():
            return await client.list_workflows_async(
                name=CHANGE,
                status=[*rows.FINISHED],
                completed_after=since.isoformat(),
                limit=PAGE_SIZE,
                load_input=False,
            )

    async def cancel(self, identifier: str) -> None:
        """Cancel an operation before its next step."""
        client = await self._connect()
        with available():
            await client.cancel_workflow_async(identifier)

    async def delete(self, identifier: str) -> None:
        """Delete an operation."""
        client = await self._connect()
        with available():
            await client.delete_workflow_async(identifier)

    async def event(self, identifier: str, key: str) -> Any:
        """Return the event ``key`` of an operation; None if it does not exist."""
        client = await self._connect()
        with available():
            return await client.get_event_async(identifier, key, 0)

    async def _search(
        self, wanted: OperationFilter, count: int, visible: Callable[[str], bool] | None
    ) -> Sequence[WorkflowStatus]:
        """Return the first ``count`` matches: DBOS cannot filter by attributes on SQLite."""
        matching: Sequence[WorkflowStatus] = []
        offset = 0
        while len(matching) < count:
            page = await self._list(wanted.done, offset=offset, limit=PAGE_SIZE)
            matching = [
                *matching,
                *(
                    row
                    for row in page
                    if wanted.attributes.items() <= rows.attributes(row).items()
                    and (visible is None or visible(str(rows.attributes(row).get("model"))))
                ),
            ]
            offset += len(page)
            if len(page) < PAGE_SIZE:
                break
        return matching[:count]

    async def _list(
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
                    await asyncio.to_thread(note_database, self._storage, self._url)
                except OSError as failed:
                    text = f"the repository cannot be written: {failed.strerror}"
                    raise Unavailable(text, reason="STORAGE") from failed
                with available():
                    self._client = await asyncio.to_thread(connect, self._url)
            return self._client
