"""Queue of operations in the database: DBOS's client, and the rows that are chosen of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from dbos import DBOSClient, WorkflowStatus, error

from topwork.bundle.documents import to_data
from topwork.changes import rows
from topwork.changes.database import CHANGE, QUEUE, available, connect, note_database
from topwork.changes.jobs import Job
from topwork.errors import Unavailable

log = structlog.get_logger(__name__)

APPLICATION_VERSION = "2"
"""Of the stored steps. A worker takes up only operations of its own; raise it when steps change."""

PROGRESS = "progress"
RESULT = "result"
"""Events of an operation: how far it is, and its result, stored just before its revision serves."""

SEARCHED = 1000
"""Operations that are read at a time where the database itself cannot tell which are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFilter:
    """Which operations to list."""

    attributes: dict[str, str | bool]
    """Fields of ``Subject`` and what they must be."""
    done: bool | None = None
    """Whether they are finished; None: both."""


class Queue:
    """The server's side of the queue. All methods but ``start`` raise Unavailable."""

    def __init__(self, url: str, root: Path) -> None:
        """Take the database's URL and the repository's directory."""
        self._url = url
        self._root = root
        self._client: DBOSClient | None = None
        self._connecting = asyncio.Lock()

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

    async def enqueue(self, job: Job, request_id: str, *, size: int) -> bool:
        """Store an operation durably; return whether its id is new.

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
                        # On SQLite DBOS orders by whole seconds. Milliseconds wrap every 24 days,
                        # when two changes may swap places: harmless, since heads do not depend on
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
        """Return the operations that are there, in any order."""
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
        """Return the ``wanted`` operations of the ``visible`` models, oldest first."""
        if visible is not None or (wanted.attributes and self._url.startswith("sqlite")):
            return (await self._searched(wanted, offset + limit, visible))[offset:]
        return await self._listed(
            wanted.done, offset=offset, limit=limit, attributes=wanted.attributes
        )

    async def cancel(self, identifier: str) -> None:
        """Let an operation end, cancelled, before its next step."""
        client = await self._connect()
        with available():
            await client.cancel_workflow_async(identifier)

    async def delete(self, identifier: str) -> None:
        """Forget an operation."""
        client = await self._connect()
        with available():
            await client.delete_workflow_async(identifier)

    async def event(self, identifier: str, key: str) -> Any:
        """Return an event of an operation; None if it has none of this ``key``."""
        client = await self._connect()
        with available():
            return await client.get_event_async(identifier, key, 0)

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
                    await asyncio.to_thread(note_database, self._root, self._url)
                except OSError as failed:
                    text = f"the repository cannot be written: {failed.strerror}"
                    raise Unavailable(text, reason="STORAGE") from failed
                with available():
                    self._client = await asyncio.to_thread(connect, self._url)
            return self._client
