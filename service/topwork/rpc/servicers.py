"""The services: each method converts, calls, converts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeAlias, TypeVar

import structlog
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc.aio import ServicerContext

from topwork.access.principals import caller
from topwork.access.slots import Slots
from topwork.bundle.manifest import Manifest
from topwork.bundle.serving import ServingState
from topwork.bundle.store import Repository
from topwork.changes.intake import Intake
from topwork.changes.jobs import ChangeKind
from topwork.changes.operations import RETRY_SECONDS, Operations, no_operation
from topwork.changes.pointer import pin, roll_back
from topwork.changes.requests import ChangeRequest
from topwork.changes.rows import OperationState
from topwork.errors import Corrupt, Forbidden, InvalidInput, NotFound
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.rpc import convert, filters
from topwork.rpc.changes import UploadMessage, from_change, from_upload
from topwork.rpc.streams import Streams
from topwork.serving.classifier import Classifier
from topwork.serving.registry import Registry
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc
from topwork.v1 import revision_pb2 as revision_pb

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)
T = TypeVar("T")

STREAM_WINDOW = 32
"""Images of one StreamClassify call in the server at a time."""

DEFAULT_PAGE = 50
LARGEST_PAGE = 1000
PAGE_BYTES = 16 * 2**20
"""Length from which on a page takes no more: it must fit into a message."""

MOST_WAIT_SECONDS = 3600.0
"""What a WaitOperation call may take; its caller may call again."""

Context: TypeAlias = "ServicerContext[Any, Any]"


class ClassifierServicer(classify_grpc.ClassifierServiceServicer):
    """topwork.v1.ClassifierService over a Classifier."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        most_seconds: float,
        stream_window: int = STREAM_WINDOW,
        most_streams: int = DEFAULT_LIMITS.max_streams,
    ) -> None:
        self._classifier = classifier
        self._most_seconds = most_seconds
        self._streams = Streams(
            classifier, most_seconds=most_seconds, window=stream_window, most_open=most_streams
        )

    async def Classify(
        self, request: classify_pb.ClassifyRequest, context: Context
    ) -> classify_pb.ClassifyResponse:
        """See the contract."""
        remaining = context.time_remaining()
        budget = self._most_seconds if remaining is None else min(self._most_seconds, remaining)
        classified = await self._classifier.classify(
            convert.resource_id(request.model, collection="models", field="model"),
            request.images,
            revision=request.revision,
            top_k=request.top_k,
            budget=budget,
        )
        return convert.to_classify_response(classified)

    async def StreamClassify(
        self, request_iterator: AsyncIterator[classify_pb.StreamClassifyRequest], context: Context
    ) -> AsyncIterator[classify_pb.StreamClassifyResponse]:
        """See the contract."""
        answers = self._streams.answer(request_iterator, context.time_remaining, caller())
        async for response in answers:
            yield response

    def end_streams(self) -> None:
        """Let all StreamClassify calls end when what they have taken up is answered."""
        self._streams.end()


class OperationViews:
    """Operations as messages. A success is told only once this process serves its revision.

    Another model's operation is NotFound.
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
        """Return an operation when it is finished or ``seconds`` are over. See ``watch``."""
        with self._watches.hold(caller().share):
            return await self.operations.wait(identifier, seconds, check_operation)

    async def message(self, operation: OperationState) -> operations_pb2.Operation:
        """Return ``operation`` as a message."""
        result = operation.outcome.result if operation.outcome is not None else None
        if result is None:
            return convert.to_operation(operation, None)
        model = operation.subject.model
        if not self._registry.knows(model, result.revision):
            await self._registry.refresh(model)
        published = None
        if result.revision:
            published = await asyncio.to_thread(self.published, model, result.revision)
        return convert.to_operation(operation, published)

    def published(self, model: str, revision: int) -> convert.PublishedRevision | None:
        """Return a revision, or None if it was removed or damaged since."""
        try:
            manifest = self._repository.manifest(model, revision)
            return convert.PublishedRevision(
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
        intake: Intake,
        limits: ServerLimits,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._views = views
        self._intake = intake
        self._limits = limits
        self._uploads = Slots(
            limits.max_uploads,
            calls="uploads",
            reason="TOO_MANY_UPLOADS",
            retry_after=RETRY_SECONDS,
        )

    async def ListModels(
        self, request: model_pb.ListModelsRequest, context: Context
    ) -> model_pb.ListModelsResponse:
        """See the contract."""
        start, size = _page(request.page_size, request.page_token)
        scope = caller().scope
        names = [name for name in self._registry.models() if scope.has(name)]
        page = _Page[model_pb.Model](start, size)
        for name in names[start:]:
            if not page.add(await self._model(name)):
                break
        return model_pb.ListModelsResponse(models=page.messages, next_page_token=page.token)

    async def GetModel(self, request: model_pb.GetModelRequest, context: Context) -> model_pb.Model:
        """See the contract."""
        return await self._model(
            convert.resource_id(request.name, collection="models", field="name")
        )

    async def ListRevisions(
        self, request: model_pb.ListRevisionsRequest, context: Context
    ) -> model_pb.ListRevisionsResponse:
        """See the contract."""
        start, size = _page(request.page_size, request.page_token)
        model = convert.resource_id(request.model, collection="models", field="model")
        self._registry.serving(model)
        page = await asyncio.to_thread(self._page_of, model, start, size)
        return model_pb.ListRevisionsResponse(revisions=page.messages, next_page_token=page.token)

    async def AddClass(
        self, request_iterator: AsyncIterator[change_pb.AddClassRequest], context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._upload("add_class", request_iterator)

    async def AddExamples(
        self, request_iterator: AsyncIterator[change_pb.AddExamplesRequest], context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._upload("add_examples", request_iterator)

    async def RemoveClass(
        self, request: change_pb.RemoveClassRequest, context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._change(from_change("remove_class", request, label=request.label))

    async def RenameClass(
        self, request: change_pb.RenameClassRequest, context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._change(
            from_change("rename_class", request, label=request.label, new_label=request.new_label)
        )

    async def Retrain(
        self, request: change_pb.RetrainRequest, context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._change(
            from_change("retrain", request, head=request.head, normalisation=request.normalisation)
        )

    async def Rollback(self, request: model_pb.RollbackRequest, context: Context) -> model_pb.Model:
        """See the contract."""
        model = convert.resource_id(request.model, collection="models", field="model")
        await asyncio.to_thread(
            roll_back,
            self._repository,
            model,
            convert.number(request.revision, field="revision"),
            expected=convert.number(request.expected_revision, field="expected_revision"),
            validate_only=request.validate_only,
        )
        await self._registry.refresh(model)
        return await self._model(model)

    async def PinRevision(
        self, request: model_pb.PinRevisionRequest, context: Context
    ) -> model_pb.Model:
        """See the contract."""
        model = convert.resource_id(request.model, collection="models", field="model")
        await asyncio.to_thread(
            pin,
            self._repository,
            model,
            convert.number(request.revision, field="revision"),
            pinned=not request.unpin,
            validate_only=request.validate_only,
        )
        return await self._model(model)

    async def WatchOperation(
        self, request: model_pb.WatchOperationRequest, context: Context
    ) -> AsyncIterator[model_pb.WatchOperationResponse]:
        """See the contract."""
        async for operation in self._views.watch(operation_id(request.name)):
            yield model_pb.WatchOperationResponse(operation=await self._views.message(operation))

    async def _upload(
        self, kind: ChangeKind, messages: AsyncIterator[UploadMessage]
    ) -> operations_pb2.Operation:
        with self._uploads.hold(caller().share):
            operation = await self._intake.upload(from_upload(kind, messages, self._limits))
        return await self._views.message(operation)

    async def _change(self, request: ChangeRequest) -> operations_pb2.Operation:
        return await self._views.message(await self._intake.take(request))

    async def _model(self, model: str) -> model_pb.Model:
        stored = await asyncio.to_thread(self._stored, self._registry.serving(model))
        return convert.to_model(stored, self._limits)

    def _stored(self, manifest: Manifest) -> convert.StoredModel:
        """Return a model; of what cannot be read only what is in memory."""
        state = self._intact(lambda one: self._repository.serving_state(one.model), manifest)
        return convert.StoredModel(
            state or ServingState(revision=manifest.revision),
            convert.PublishedRevision(
                manifest,
                self._intact(self._repository.metrics, manifest),
                self._intact(self._repository.backbone, manifest),
            ),
            self._repository.revisions(manifest.model),
        )

    def _intact(self, read: Callable[[Manifest], T], manifest: Manifest) -> T | None:
        """Return what ``read`` does; log it and return None if it is damaged."""
        try:
            return read(manifest)
        except (Corrupt, NotFound) as error:
            log.warning("model cannot be described", model=manifest.model, error=str(error))
            return None

    def _page_of(self, model: str, start: int, size: int) -> _Page[revision_pb.Revision]:
        """Return a page of a model's revisions, newest first."""
        page = _Page[revision_pb.Revision](start, size)
        for number in self._repository.revisions(model)[::-1][start:]:
            found = self._views.published(model, number)
            message = (
                convert.damaged_revision(model, number)
                if found is None
                else convert.to_revision(found)
            )
            if not page.add(message):
                break
        return page


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # untyped base
    """google.longrunning.Operations."""

    def __init__(self, views: OperationViews) -> None:
        self._views = views

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """List operations, oldest first; for ``filter`` see ``topwork.rpc.filters``."""
        start, size = _page(request.page_size, request.page_token)
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
        page = _Page[operations_pb2.Operation](start, size)
        for one in found:
            if not page.add(await self._views.message(one)):
                break
        return operations_pb2.ListOperationsResponse(
            operations=page.messages, next_page_token=page.token
        )

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Return an operation's state."""
        return await self._views.message(await self._views.get(operation_id(request.name)))

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> Empty:
        """End an operation before its next step; one that has finished stays as it is."""
        operation = await self._views.get(operation_id(request.name))
        await self._views.operations.cancel(operation.id)
        return Empty()

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> Empty:
        """Forget a finished operation."""
        operation = await self._views.get(operation_id(request.name))
        await self._views.operations.delete(operation.id)
        return Empty()

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Return an operation when it is finished or ``timeout`` is over, whichever is first."""
        seconds = MOST_WAIT_SECONDS
        if request.HasField("timeout"):
            seconds = min(seconds, convert.seconds(request.timeout, field="timeout"))
        operation = await self._views.wait(operation_id(request.name), seconds)
        return await self._views.message(operation)


def operation_id(name: str) -> str:
    """Return the id in an operation's resource name. Raises InvalidInput."""
    return convert.resource_id(name, collection="operations", field="name")


def check_operation(operation: OperationState) -> None:
    """Raise NotFound if the call may not be about the operation's model."""
    try:
        caller().check(operation.subject.model)
    except Forbidden:
        raise no_operation(operation.id) from None


class _Page(Generic[M]):
    """A page of a list from ``start`` on: ``size`` messages, fewer where they are large."""

    def __init__(self, start: int, size: int) -> None:
        self.messages: list[M] = []
        self.token = ""
        """Where the next page begins; empty: there is none."""
        self._start = start
        self._size = size
        self._bytes = 0

    def add(self, message: M) -> bool:
        """Add the next message; return False if it is the next page's."""
        length = message.ByteSize()
        full = len(self.messages) == self._size
        if full or (self.messages and self._bytes + length > PAGE_BYTES):
            self.token = str(self._start + len(self.messages))
            return False
        self.messages.append(message)
        self._bytes += length
        return True


def _page(size: int, token: str) -> tuple[int, int]:
    """Return offset and length of a page. Raises InvalidInput."""
    if size < 0:
        raise InvalidInput(f"page_size is {size}; it must not be negative", field="page_size")
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidInput(f"page_token {token[:80]!r} was not given here", field="page_token")
    return int(token or 0), min(size or DEFAULT_PAGE, LARGEST_PAGE)
