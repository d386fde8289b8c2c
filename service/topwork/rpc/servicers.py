"""The services: each method converts, calls, converts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from grpc.aio import ServicerContext

from topwork.bundle.limits import Limits
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.engine.operations import Operation, Operations
from topwork.engine.serving.classifier import Classifier
from topwork.engine.serving.registry import Registry
from topwork.errors import Corrupt, InvalidInput, NotFound
from topwork.rpc import convert
from topwork.rpc.streams import Streams
from topwork.rpc.uploads import Uploads
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

STREAM_WINDOW = 32
"""Images of one StreamClassify call in the server at a time."""

DEFAULT_PAGE = 50
LARGEST_PAGE = 1000

Context: TypeAlias = "ServicerContext[Any, Any]"


class ClassifierServicer(classify_grpc.ClassifierServiceServicer):
    """topwork.v1.ClassifierService over a Classifier."""

    def __init__(
        self, classifier: Classifier, *, most_seconds: float, stream_window: int = STREAM_WINDOW
    ) -> None:
        self._classifier = classifier
        self._most_seconds = most_seconds
        self._streams = Streams(classifier, most_seconds=most_seconds, window=stream_window)

    async def Classify(
        self, request: classify_pb.ClassifyRequest, context: Context
    ) -> classify_pb.ClassifyResponse:
        """See the contract."""
        remaining = context.time_remaining()
        budget = self._most_seconds if remaining is None else min(self._most_seconds, remaining)
        classified = await self._classifier.classify(
            convert.resource_id(request.model, collection="models", field="model"),
            list(request.images),
            revision=request.revision,
            top_k=request.top_k,
            budget=budget,
        )
        return convert.to_classify_response(classified)

    async def StreamClassify(
        self, request_iterator: AsyncIterator[classify_pb.StreamClassifyRequest], context: Context
    ) -> AsyncIterator[classify_pb.StreamClassifyResponse]:
        """See the contract."""
        async for response in self._streams.answer(request_iterator, context.time_remaining):
            yield response

    def end_streams(self) -> None:
        """Let all StreamClassify calls end when what they have taken up is answered."""
        self._streams.end()


class OperationViews:
    """Operations as messages. A success is told only once this process serves its revision."""

    def __init__(self, repository: Repository, registry: Registry, operations: Operations) -> None:
        self._repository = repository
        self._registry = registry
        self.operations = operations

    async def message(self, operation: Operation) -> operations_pb2.Operation:
        """Return ``operation`` as a message."""
        result = operation.outcome.result if operation.outcome is not None else None
        if result is None:
            return convert.to_operation(operation, None)
        if not self._registry.knows(operation.model, result.revision):
            await self._registry.refresh(operation.model)
        published = await asyncio.to_thread(self._published, operation.model, result.revision)
        return convert.to_operation(operation, published)

    def _published(self, model: str, revision: int) -> convert.Published | None:
        """Return a revision, or None if it was removed or damaged since."""
        try:
            manifest = self._repository.manifest(model, revision)
            return convert.Published(
                manifest, self._repository.metrics(manifest), self._repository.backbone(manifest)
            )
        except (NotFound, Corrupt):
            return None


class ModelServicer(model_grpc.ModelServiceServicer):
    """topwork.v1.ModelService."""

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        views: OperationViews,
        uploads: Uploads,
        limits: Limits,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._views = views
        self._uploads = uploads
        self._limits = limits

    async def ListModels(
        self, request: model_pb.ListModelsRequest, context: Context
    ) -> model_pb.ListModelsResponse:
        """See the contract."""
        start, size = _page(request.page_size, request.page_token)
        names = self._registry.models()
        return model_pb.ListModelsResponse(
            models=[await self._model(name) for name in names[start : start + size]],
            next_page_token=str(start + size) if start + size < len(names) else "",
        )

    async def GetModel(self, request: model_pb.GetModelRequest, context: Context) -> model_pb.Model:
        """See the contract."""
        return await self._model(
            convert.resource_id(request.name, collection="models", field="name")
        )

    async def AddClass(
        self, request_iterator: AsyncIterator[model_pb.AddClassRequest], context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._views.message(await self._uploads.receive(request_iterator))

    async def WatchOperation(
        self, request: model_pb.WatchOperationRequest, context: Context
    ) -> AsyncIterator[model_pb.WatchOperationResponse]:
        """See the contract."""
        async for operation in self._views.operations.watch(operation_id(request.name)):
            yield model_pb.WatchOperationResponse(operation=await self._views.message(operation))

    async def _model(self, model: str) -> model_pb.Model:
        serving, revisions = await asyncio.to_thread(self._stored, self._registry.serving(model))
        return convert.to_model(serving, revisions, self._limits)

    def _stored(self, manifest: Manifest) -> tuple[convert.Published, list[int]]:
        """Return a serving revision, and the numbers of all."""
        published = convert.Published(
            manifest, self._repository.metrics(manifest), self._repository.backbone(manifest)
        )
        return published, self._repository.revisions(manifest.model)


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # untyped base
    """google.longrunning.Operations."""

    def __init__(self, views: OperationViews) -> None:
        self._views = views

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """List operations, oldest first. ``filter`` is not supported and refused."""
        if request.filter:
            raise InvalidInput(f"filter {request.filter[:80]!r} is not supported", field="filter")
        start, size = _page(request.page_size, request.page_token)
        found = await self._views.operations.list(offset=start, limit=size + 1)
        return operations_pb2.ListOperationsResponse(
            operations=[await self._views.message(one) for one in found[:size]],
            next_page_token=str(start + size) if len(found) > size else "",
        )

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Return an operation's state."""
        operation = await self._views.operations.get(operation_id(request.name))
        return await self._views.message(operation)

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> Empty:
        """End an operation before its next step; one that has finished stays as it is."""
        await self._views.operations.cancel(operation_id(request.name))
        return Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> Empty:
        """Forget a finished operation."""
        await self._views.operations.delete(operation_id(request.name))
        return Empty()

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Return an operation when it is finished or ``timeout`` is over, whichever is first."""
        seconds = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None
        operation = await self._views.operations.wait(operation_id(request.name), seconds)
        return await self._views.message(operation)


def operation_id(name: str) -> str:
    """Return the id in an operation's resource name. Raises InvalidInput."""
    return convert.resource_id(name, collection="operations", field="name")


def _page(size: int, token: str) -> tuple[int, int]:
    """Return offset and length of a page. Raises InvalidInput."""
    if size < 0:
        raise InvalidInput(f"page_size is {size}; it must not be negative", field="page_size")
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidInput(f"page_token {token[:80]!r} was not given here", field="page_token")
    return int(token or 0), min(size or DEFAULT_PAGE, LARGEST_PAGE)
