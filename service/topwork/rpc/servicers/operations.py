"""Servicer of google.longrunning.Operations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty

from topwork.access.principals import caller
from topwork.access.slots import Slots
from topwork.bundle.store import Repository
from topwork.changes.operations import RETRY_SECONDS, Operations, no_operation
from topwork.changes.rows import OperationState
from topwork.errors import Corrupt, Forbidden, NotFound
from topwork.rpc import filters
from topwork.rpc.context import Context
from topwork.rpc.convert import fields
from topwork.rpc.convert.operations import to_operation
from topwork.rpc.convert.revisions import (
    PublishedRevision,
)
from topwork.rpc.servicers.pages import Page, page_range
from topwork.serving.registry import Registry

MOST_WAIT_SECONDS = 3600.0
"""Raising it lets a WaitOperation call last longer; its caller may call again."""


class OperationViews:
    """Operations as messages. Success is reported only once this process serves the revision.

    Operations of models that the caller may not use are NotFound.
    """

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        operations: Operations,
        *,
        most_watches: int,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self.operations = operations
        self._watches = Slots(
            most_watches,
            calls="calls that wait for operations",
            reason="TOO_MANY_WATCHES",
            retry_after=RETRY_SECONDS,
        )

    async def get(self, identifier: str) -> OperationState:
        """Return an operation. Raises NotFound."""
        operation = await self.operations.get(identifier)
        check_operation(operation)
        return operation

    async def watch(self, identifier: str) -> AsyncIterator[OperationState]:
        """Yield an operation's states. Raises NotFound, Unavailable, Overloaded."""
        with self._watches.hold(caller().share):
            async for operation in self.operations.watch(identifier, check_operation):
                yield operation

    async def wait(self, identifier: str, seconds: float) -> OperationState:
        """Return an operation when it is finished or after ``seconds``. Raises as ``watch``."""
        with self._watches.hold(caller().share):
            return await self.operations.wait(identifier, seconds, check_operation)

    async def message(self, operation: OperationState) -> operations_pb2.Operation:
        """Return ``operation`` as a message."""
        result = operation.outcome.result if operation.outcome is not None else None
        if result is None:
            return to_operation(operation, None)
        model = operation.subject.model
        if not self._registry.knows(model, result.revision):
            await self._registry.refresh(model)
        published = None
        if result.revision:
            published = await asyncio.to_thread(self.published, model, result.revision)
        return to_operation(operation, published)

    def published(self, model: str, revision: int) -> PublishedRevision | None:
        """Return a revision, or None if it has been removed or damaged."""
        try:
            manifest = self._repository.manifest(model, revision)
            return PublishedRevision(
                manifest, self._repository.metrics(manifest), self._repository.backbone(manifest)
            )
        except (NotFound, Corrupt):
            return None


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # untyped base
    """google.longrunning.Operations."""

    def __init__(self, views: OperationViews) -> None:
        self._views = views

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """List operations, oldest first; for ``filter`` see ``topwork.rpc.filters``."""
        start, size = page_range(request.page_size, request.page_token)
        wanted = filters.parse(request.filter)
        if model := wanted.attributes.get("model"):
            caller().check(str(model))
        scope = caller().scope
        found = await self._views.operations.list(
            wanted,
            offset=start,
            limit=size + 1,
            visible=None if scope.has_all else scope.has,
        )
        page = Page[operations_pb2.Operation](start, size)
        for operation in found:
            if not page.add(await self._views.message(operation)):
                break
        return operations_pb2.ListOperationsResponse(
            operations=page.messages, next_page_token=page.token
        )

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Return an operation's state."""
        return await self._views.message(await self._views.get(fields.operation_id(request.name)))

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> Empty:
        """End an operation before its next step; one that has finished stays as it is."""
        operation = await self._views.get(fields.operation_id(request.name))
        await self._views.operations.cancel(operation.id)
        return Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> Empty:
        """Forget a finished operation."""
        operation = await self._views.get(fields.operation_id(request.name))
        await self._views.operations.delete(operation.id)
        return Empty()

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Return an operation when it is finished or ``timeout`` is over, whichever is first."""
        seconds = MOST_WAIT_SECONDS
        if request.HasField("timeout"):
            seconds = min(seconds, fields.seconds(request.timeout, field="timeout"))
        operation = await self._views.wait(fields.operation_id(request.name), seconds)
        return await self._views.message(operation)


def check_operation(operation: OperationState) -> None:
    """Raise NotFound if the caller may not use the operation's model."""
    try:
        caller().check(operation.subject.model)
    except Forbidden:
        raise no_operation(operation.id) from None
