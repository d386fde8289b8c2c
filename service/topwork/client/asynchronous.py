"""The Python client for asyncio: the methods of ``topwork.Client``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Self

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc

from topwork.client import calls, stream_calls
from topwork.client.credentials import NOTHING, Credentials, bearing
from topwork.client.exchange import IMAGES_A_MESSAGE, Exchange, StreamResult
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc
from topwork.v1 import revision_pb2 as revision_pb


class AsyncClient:
    """Client for asyncio; belongs to the event loop that it was made in."""

    def __init__(self, address: str, credentials: Credentials = NOTHING) -> None:
        self._address = address
        self._tls = credentials.tls
        metadata = credentials.metadata(address)  # before there is something to close
        options = calls.options_for(address)
        if (secure := credentials.channel_credentials()) is not None:
            self._channel = grpc.aio.secure_channel(address, secure, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        channel = bearing(self._channel, metadata)
        self._classifier: classify_grpc.ClassifierServiceAsyncStub = (
            classify_grpc.ClassifierServiceStub(channel)
        )
        self._models: model_grpc.ModelServiceAsyncStub = model_grpc.ModelServiceStub(channel)
        self._operations = operations_pb2_grpc.OperationsStub(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def wait_until_ready(self, seconds: float) -> None:
        """See Client.wait_until_ready."""
        try:
            async with asyncio.timeout(seconds):
                await self._channel.channel_ready()
        except TimeoutError:
            unreachable = partial(calls.unreachable, self._address, seconds, tls=self._tls)
            raise await asyncio.to_thread(unreachable) from None

    async def classify(
        self,
        model: str,
        images: Iterable[bytes],
        *,
        revision: int = 0,
        top_k: int = 0,
        timeout: float | None = None,
    ) -> classify_pb.ClassifyResponse:
        """See Client.classify."""
        request = calls.classify_request(model, images, revision, top_k)
        return await calls.ask_async(self._classifier.Classify, request, timeout)

    async def classify_stream(
        self,
        model: str,
        images: Iterable[bytes] | AsyncIterable[bytes],
        *,
        revision: int = 0,
        top_k: int = 0,
        images_per_message: int = IMAGES_A_MESSAGE,
        timeout: float | None = None,
    ) -> AsyncGenerator[StreamResult, None]:
        """See Client.classify_stream; here ``images`` are taken in the event loop."""
        exchange = Exchange(
            model,
            (await self.model(model)).limits,
            revision=revision,
            top_k=top_k,
            images_per_message=images_per_message,
            timeout=timeout,
        )
        stream = stream_calls.for_asyncio(self._classifier.StreamClassify, images, exchange)
        async with aclosing(stream) as results:
            async for result in results:
                yield result

    async def add_class(
        self,
        model: str,
        label: str,
        images: Iterable[tuple[str, bytes]],
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """See Client.add_class."""
        requests = calls.add_class_requests(model, label, images, request_id, options)
        return await calls.upload_async(self._models.AddClass, requests, timeout)

    async def add_examples(
        self,
        model: str,
        label: str,
        images: Iterable[tuple[str, bytes]],
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """See Client.add_examples."""
        requests = calls.add_examples_requests(model, label, images, request_id, options)
        return await calls.upload_async(self._models.AddExamples, requests, timeout)

    async def remove_class(
        self,
        model: str,
        label: str,
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """See Client.remove_class."""
        request = change_pb.RemoveClassRequest(
            model=f"models/{model}",
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return await calls.ask_async(self._models.RemoveClass, request, timeout)

    async def rename_class(
        self,
        model: str,
        label: str,
        new_label: str,
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """See Client.rename_class."""
        request = change_pb.RenameClassRequest(
            model=f"models/{model}",
            label=label,
            new_label=new_label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return await calls.ask_async(self._models.RenameClass, request, timeout)

    async def retrain(
        self,
        model: str,
        *,
        head: str = "",
        normalisation: str = "",
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """See Client.retrain."""
        request = change_pb.RetrainRequest(
            model=f"models/{model}",
            head=head,
            normalisation=normalisation,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return await calls.ask_async(self._models.Retrain, request, timeout)

    async def rollback(
        self,
        model: str,
        revision: int = 0,
        *,
        expected_revision: int = 0,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> model_pb.Model:
        """See Client.rollback."""
        request = model_pb.RollbackRequest(
            model=f"models/{model}",
            revision=revision,
            expected_revision=expected_revision,
            validate_only=validate_only,
        )
        return await calls.ask_async(self._models.Rollback, request, timeout)

    async def pin_revision(
        self,
        model: str,
        revision: int,
        *,
        unpin: bool = False,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> model_pb.Model:
        """See Client.pin_revision."""
        request = model_pb.PinRevisionRequest(
            model=f"models/{model}", revision=revision, unpin=unpin, validate_only=validate_only
        )
        return await calls.ask_async(self._models.PinRevision, request, timeout)

    async def watch(self, operation: str) -> AsyncIterator[operations_pb2.Operation]:
        """See Client.watch."""
        call = self._models.WatchOperation(model_pb.WatchOperationRequest(name=operation))
        try:
            async for response in call:
                yield response.operation
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            call.cancel()

    async def model(self, model: str) -> model_pb.Model:
        """See Client.model."""
        return await calls.ask_async(
            self._models.GetModel, model_pb.GetModelRequest(name=f"models/{model}")
        )

    async def models(self) -> AsyncIterator[model_pb.Model]:
        """See Client.models."""
        token = ""
        while True:
            request = model_pb.ListModelsRequest(page_token=token)
            page = await calls.ask_async(self._models.ListModels, request)
            for one in page.models:
                yield one
            if not (token := page.next_page_token):
                return

    async def revisions(self, model: str) -> AsyncIterator[revision_pb.Revision]:
        """See Client.revisions."""
        token = ""
        while True:
            request = model_pb.ListRevisionsRequest(model=f"models/{model}", page_token=token)
            page = await calls.ask_async(self._models.ListRevisions, request)
            for one in page.revisions:
                yield one
            if not (token := page.next_page_token):
                return

    async def operations(self, wanted: str = "") -> AsyncIterator[operations_pb2.Operation]:
        """See Client.operations."""
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(filter=wanted, page_token=token)
            page = await calls.ask_async(self._operations.ListOperations, request)
            for one in page.operations:
                yield one
            if not (token := page.next_page_token):
                return

    async def cancel(self, operation: str) -> None:
        """See Client.cancel."""
        request = operations_pb2.CancelOperationRequest(name=operation)
        await calls.ask_async(self._operations.CancelOperation, request)
