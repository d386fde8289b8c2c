"""Servicer of topwork.v1.ModelService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from topwork.access.principals import caller
from topwork.access.slots import Slots
from topwork.bundle.store import Repository
from topwork.changes.intake import Intake
from topwork.changes.jobs import ChangeKind
from topwork.changes.lifecycle import Lifecycle, backbones
from topwork.changes.operations import RETRY_SECONDS
from topwork.changes.pointer import pin, roll_back
from topwork.changes.requests import ChangeRequest, UploadItem
from topwork.errors import NotFound
from topwork.limits import ServerLimits
from topwork.rpc.context import Context
from topwork.rpc.convert import fields
from topwork.rpc.convert.evaluations import from_evaluate
from topwork.rpc.convert.lifecycle import from_create, to_stored_backbone
from topwork.rpc.convert.requests import UploadMessage, from_change, from_upload
from topwork.rpc.convert.revisions import (
    damaged_revision,
    to_revision,
)
from topwork.rpc.servicers.evaluations import EvaluationViews
from topwork.rpc.servicers.examples import ExampleViews
from topwork.rpc.servicers.model_views import ModelViews
from topwork.rpc.servicers.operations import OperationViews
from topwork.rpc.servicers.pages import Page, page_range
from topwork.serving.registry import Registry
from topwork.serving.statistics import Statistics
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb
from topwork.v1 import example_pb2 as example_pb
from topwork.v1 import model_lifecycle_pb2 as lifecycle_pb
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc
from topwork.v1 import revision_pb2 as revision_pb


class ModelServicer(model_grpc.ModelServiceServicer):
    """topwork.v1.ModelService."""

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        views: OperationViews,
        examples: ExampleViews,
        intake: Intake,
        lifecycle: Lifecycle,
        statistics: Statistics,
        limits: ServerLimits,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._models = ModelViews(repository, registry, limits)
        self._lifecycle = lifecycle
        self._statistics = statistics
        self._views = views
        self._examples = examples
        self._evaluations = EvaluationViews(repository)
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
        start, size = page_range(request.page_size, request.page_token)
        scope = caller().scope
        known = sorted({*self._registry.models(), *self._registry.drafts()})
        page = Page[model_pb.Model](start, size)
        for name in [name for name in known if scope.has(name)][start:]:
            try:
                message = await self._models.message(name)
            except NotFound:  # another server deleted it, and this one has not noticed yet
                continue
            if not page.add(message):
                break
        return model_pb.ListModelsResponse(models=page.messages, next_page_token=page.token)

    async def GetModel(self, request: model_pb.GetModelRequest, context: Context) -> model_pb.Model:
        """See the contract."""
        return await self._models.message(fields.model_id(request.name, field="name"))

    async def ListRevisions(
        self, request: model_pb.ListRevisionsRequest, context: Context
    ) -> model_pb.ListRevisionsResponse:
        """See the contract."""
        start, size = page_range(request.page_size, request.page_token)
        model = fields.model_id(request.model, field="model")
        self._registry.current(model)
        page = await asyncio.to_thread(self._page_of, model, start, size)
        return model_pb.ListRevisionsResponse(revisions=page.messages, next_page_token=page.token)

    async def GetReport(
        self, request: revision_pb.GetReportRequest, context: Context
    ) -> revision_pb.Report:
        """See the contract."""
        return await self._examples.report(request)

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

    async def AddClasses(
        self, request_iterator: AsyncIterator[change_pb.AddClassesRequest], context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._upload("add_classes", request_iterator)

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

    async def ListExamples(
        self, request: example_pb.ListExamplesRequest, context: Context
    ) -> example_pb.ListExamplesResponse:
        """See the contract."""
        return await self._examples.page(request)

    async def GetExample(
        self, request: example_pb.GetExampleRequest, context: Context
    ) -> example_pb.Example:
        """See the contract."""
        return await self._examples.example(request)

    async def RemoveExamples(
        self, request: change_pb.RemoveExamplesRequest, context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._change(
            from_change(
                "remove_examples", request, label=request.label, digests=tuple(request.digests)
            )
        )

    async def MoveExamples(
        self, request: change_pb.MoveExamplesRequest, context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._change(
            from_change(
                "move_examples", request, label=request.label, digests=tuple(request.digests)
            )
        )

    async def Rollback(self, request: model_pb.RollbackRequest, context: Context) -> model_pb.Model:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        await asyncio.to_thread(
            roll_back,
            self._repository,
            model,
            fields.number(request.revision, field="revision"),
            expected=fields.number(request.expected_revision, field="expected_revision"),
            validate_only=request.validate_only,
        )
        await self._registry.refresh(model)
        return await self._models.message(model)

    async def PinRevision(
        self, request: model_pb.PinRevisionRequest, context: Context
    ) -> model_pb.Model:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        await asyncio.to_thread(
            pin,
            self._repository,
            model,
            fields.number(request.revision, field="revision"),
            pinned=not request.unpin,
            validate_only=request.validate_only,
        )
        return await self._models.message(model)

    async def CreateModel(
        self, request: lifecycle_pb.CreateModelRequest, context: Context
    ) -> model_pb.Model:
        """See the contract."""
        new = from_create(request)
        if new.like:
            caller().check(new.like)
        await asyncio.to_thread(self._lifecycle.create, new)
        return await self._changed(new.name)

    async def CopyModel(
        self, request: lifecycle_pb.CopyModelRequest, context: Context
    ) -> model_pb.Model:
        """See the contract."""
        source = fields.model_id(request.source, field="source")
        caller().check(source)
        name = fields.new_model_id(request.model, field="model")
        await asyncio.to_thread(
            self._lifecycle.copy,
            source,
            fields.number(request.revision, field="revision"),
            name,
            request_id=fields.request_id(request.request_id),
        )
        return await self._changed(name)

    async def DeleteModel(
        self, request: lifecycle_pb.DeleteModelRequest, context: Context
    ) -> Empty:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        if not request.force and self._registry.knows(model, 0):
            self._statistics.check_idle(model)
        await asyncio.to_thread(self._lifecycle.delete, model)
        await self._registry.refresh(model)
        return Empty()

    async def UndeleteModel(
        self, request: lifecycle_pb.UndeleteModelRequest, context: Context
    ) -> model_pb.Model:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        await asyncio.to_thread(self._lifecycle.undelete, model)
        return await self._changed(model)

    async def ListBackbones(
        self, request: lifecycle_pb.ListBackbonesRequest, context: Context
    ) -> lifecycle_pb.ListBackbonesResponse:
        """See the contract."""
        start, size = page_range(request.page_size, request.page_token)
        page = Page[lifecycle_pb.StoredBackbone](start, size)
        for info, length in (await asyncio.to_thread(backbones, self._repository))[start:]:
            if not page.add(to_stored_backbone(info, length)):
                break
        return lifecycle_pb.ListBackbonesResponse(
            backbones=page.messages, next_page_token=page.token
        )

    async def WatchOperation(
        self, request: model_pb.WatchOperationRequest, context: Context
    ) -> AsyncIterator[model_pb.WatchOperationResponse]:
        """See the contract."""
        async for operation in self._views.watch(fields.operation_id(request.name)):
            yield model_pb.WatchOperationResponse(operation=await self._views.message(operation))

    async def Evaluate(
        self, request_iterator: AsyncIterator[evaluation_pb.EvaluateRequest], context: Context
    ) -> operations_pb2.Operation:
        """See the contract."""
        return await self._take_in(from_evaluate(request_iterator, self._limits))

    async def ListEvaluationSets(
        self, request: evaluation_pb.ListEvaluationSetsRequest, context: Context
    ) -> evaluation_pb.ListEvaluationSetsResponse:
        """See the contract."""
        return await self._evaluations.sets(request)

    async def GetEvaluationSet(
        self, request: evaluation_pb.GetEvaluationSetRequest, context: Context
    ) -> evaluation_pb.EvaluationSet:
        """See the contract."""
        return await self._evaluations.set(request)

    async def DeleteEvaluationSet(
        self, request: evaluation_pb.DeleteEvaluationSetRequest, context: Context
    ) -> Empty:
        """See the contract."""
        await self._evaluations.delete(request)
        return Empty()

    async def ListEvaluations(
        self, request: evaluation_pb.ListEvaluationsRequest, context: Context
    ) -> evaluation_pb.ListEvaluationsResponse:
        """See the contract."""
        return await self._evaluations.evaluations(request)

    async def GetEvaluation(
        self, request: evaluation_pb.GetEvaluationRequest, context: Context
    ) -> evaluation_pb.Evaluation:
        """See the contract."""
        return await self._evaluations.evaluation(request)

    async def _upload(
        self, kind: ChangeKind, messages: AsyncIterator[UploadMessage]
    ) -> operations_pb2.Operation:
        return await self._take_in(from_upload(kind, messages, self._limits))

    async def _take_in(self, items: AsyncIterator[UploadItem]) -> operations_pb2.Operation:
        with self._uploads.hold(caller().share):
            operation = await self._intake.upload(items)
        return await self._views.message(operation)

    async def _change(self, request: ChangeRequest) -> operations_pb2.Operation:
        return await self._views.message(await self._intake.submit(request))

    async def _changed(self, model: str) -> model_pb.Model:
        """Return a model that has just changed, once this process knows it."""
        await self._registry.refresh(model)
        return await self._models.message(model)

    def _page_of(self, model: str, start: int, size: int) -> Page[revision_pb.Revision]:
        """Return a page of a model's revisions, newest first."""
        page = Page[revision_pb.Revision](start, size)
        for number in self._repository.revisions(model)[::-1][start:]:
            found = self._views.published(model, number)
            message = damaged_revision(model, number) if found is None else to_revision(found)
            if not page.add(message):
                break
        return page
