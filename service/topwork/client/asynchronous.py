"""The Python client for asyncio. `make proto` generates the blocking one from this file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc

from topwork.client import async_calls, calls
from topwork.client.credentials import NOTHING, Credentials, bearing
from topwork.client.exchange import IMAGES_A_MESSAGE, Exchange
from topwork.client.images import ImageSource, NamedImage
from topwork.client.results import ClassifyResult, Operation, StreamResult
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc
from topwork.v1 import revision_pb2 as revision_pb


class AsyncClient:
    """A client of one server for asyncio. Belongs to the event loop that it was made in.

    Without ``credentials`` it speaks plaintext.
    """

    def __init__(self, address: str, credentials: Credentials = NOTHING) -> None:
        self._address = address
        self._tls = credentials.tls
        metadata = credentials.metadata(address)  # before there is something to close
        self._channel = async_calls.open_channel(address, credentials)
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
        """Return when the server can be reached. Raises CallFailed if it cannot in ``seconds``."""
        await async_calls.wait_until_ready(self._channel, self._address, seconds, tls=self._tls)

    async def classify(
        self,
        model: str,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        revision: int = 0,
        top_k: int = 0,
        timeout: float | None = None,
    ) -> ClassifyResult:
        """Return one result an encoded image, in order; see topwork.v1.ClassifyRequest.

        An image is its bytes, the path of its file, or a file that is open in binary mode.
        ``timeout`` in seconds. Raises CallFailed, and OSError if a file cannot be read; a bad image
        is an error in its own result.
        """
        encoded = await async_calls.contents(images)
        request = calls.classify_request(model, encoded, revision, top_k)
        answer = await async_calls.ask(self._classifier.Classify, request, timeout)
        return ClassifyResult.of(answer)

    async def classify_stream(
        self,
        model: str,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        revision: int = 0,
        top_k: int = 0,
        images_per_message: int = IMAGES_A_MESSAGE,
        timeout: float | None = None,
    ) -> AsyncGenerator[StreamResult, None]:
        """Yield one result an encoded image, in order, for any number of images.

        Takes ``images`` as fast as the server has room for them, in the event loop, and never
        holds more than some hundred. They wait until their message is complete: a source that is
        slower than the server, such as a camera, wants one ``images_per_message``. ``timeout`` in
        seconds is each message's. A bad image is an error in its own result; raises CallFailed, or
        what ``images`` and their files raise, after the results of all images before.
        """
        described = await self.model(model)
        exchange = Exchange(
            model,
            described.limits,
            revision=revision,
            top_k=top_k,
            images_per_message=images_per_message,
            timeout=timeout,
        )
        stream = async_calls.stream(self._classifier.StreamClassify, images, exchange)
        async with aclosing(stream) as results:
            async for result in results:
                yield result

    async def add_class(
        self,
        model: str,
        label: str,
        images: Iterable[NamedImage] | AsyncIterable[NamedImage],
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Upload the images of a new label, and return the accepted operation.

        An image is what ``classify`` takes, or a pair of its display name and that; the display
        name of a file is else its path. A repeated call with the same ``request_id`` (a UUID) is
        the same operation; so it is with every change. Raises CallFailed, or what ``images`` and
        their files raise: then nothing is learnt.
        """
        config = change_pb.AddClassConfig(
            model=f"models/{model}",
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        first = change_pb.AddClassRequest(config=config)
        return Operation.of(await async_calls.upload(self._models.AddClass, first, images, timeout))

    async def add_examples(
        self,
        model: str,
        label: str,
        images: Iterable[NamedImage] | AsyncIterable[NamedImage],
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Upload more images, as ``add_class`` takes them, of a label that the model has."""
        config = change_pb.AddExamplesConfig(
            model=f"models/{model}",
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        first = change_pb.AddExamplesRequest(config=config)
        return Operation.of(
            await async_calls.upload(self._models.AddExamples, first, images, timeout)
        )

    async def remove_class(
        self,
        model: str,
        label: str,
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Let a model forget a label, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RemoveClassRequest(
            model=f"models/{model}",
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(await async_calls.ask(self._models.RemoveClass, request, timeout))

    async def rename_class(
        self,
        model: str,
        label: str,
        new_label: str,
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Give a label another name, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RenameClassRequest(
            model=f"models/{model}",
            label=label,
            new_label=new_label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(await async_calls.ask(self._models.RenameClass, request, timeout))

    async def retrain(
        self,
        model: str,
        *,
        head: str = "",
        normalisation: str = "",
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Solve a model's head anew, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RetrainRequest(
            model=f"models/{model}",
            head=head,
            normalisation=normalisation,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(await async_calls.ask(self._models.Retrain, request, timeout))

    async def rollback(
        self,
        model: str,
        revision: int = 0,
        *,
        expected_revision: int = 0,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> model_pb.Model:
        """Let another revision serve, 0 the one before, and return the model. Raises CallFailed."""
        request = model_pb.RollbackRequest(
            model=f"models/{model}",
            revision=revision,
            expected_revision=expected_revision,
            validate_only=validate_only,
        )
        return await async_calls.ask(self._models.Rollback, request, timeout)

    async def pin_revision(
        self,
        model: str,
        revision: int,
        *,
        unpin: bool = False,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> model_pb.Model:
        """Keep a revision for good, or no longer, and return the model. Raises CallFailed."""
        request = model_pb.PinRevisionRequest(
            model=f"models/{model}", revision=revision, unpin=unpin, validate_only=validate_only
        )
        return await async_calls.ask(self._models.PinRevision, request, timeout)

    async def watch(self, operation: str) -> AsyncIterator[Operation]:
        """Yield the states of ``operation`` (its name) until it is finished. Raises CallFailed."""
        call = self._models.WatchOperation(model_pb.WatchOperationRequest(name=operation))
        try:
            async for response in call:
                yield Operation.of(response.operation)
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            call.cancel()  # for those who stop looking before the end

    async def model(self, model: str) -> model_pb.Model:
        """Return a model. Raises CallFailed."""
        request = model_pb.GetModelRequest(name=f"models/{model}")
        return await async_calls.ask(self._models.GetModel, request)

    async def models(self) -> AsyncIterator[model_pb.Model]:
        """Yield all models, in the order of their names. Raises CallFailed."""
        async for page in self._pages(self._models.ListModels, model_pb.ListModelsRequest()):
            for model in page.models:
                yield model

    async def revisions(self, model: str) -> AsyncIterator[revision_pb.Revision]:
        """Yield all revisions of a model, newest first. Raises CallFailed."""
        request = model_pb.ListRevisionsRequest(model=f"models/{model}")
        async for page in self._pages(self._models.ListRevisions, request):
            for revision in page.revisions:
                yield revision

    async def operations(self, wanted: str = "") -> AsyncIterator[Operation]:
        """Yield the operations that the filter ``wanted`` lets pass, oldest first.

        Such as ``model = "models/flowers" AND done = false``. Raises CallFailed.
        """
        request = operations_pb2.ListOperationsRequest(filter=wanted)
        async for page in self._pages(self._operations.ListOperations, request):
            for operation in page.operations:
                yield Operation.of(operation)

    async def cancel(self, operation: str) -> None:
        """End ``operation`` (its name) before its next step. Raises CallFailed."""
        request = operations_pb2.CancelOperationRequest(name=operation)
        await async_calls.ask(self._operations.CancelOperation, request)

    async def _pages(self, method: Any, request: Any) -> AsyncIterator[Any]:
        """Yield the pages of a list."""
        while True:
            page = await async_calls.ask(method, request)
            yield page
            if not (token := page.next_page_token):
                return
            request.page_token = token
