"""The Python client, blocking (Client) and for asyncio (AsyncClient).

    with Client("127.0.0.1:50051") as client:
        answer = client.classify("flowers", [photo])
        print(answer.results[0].classification.predictions[0].label)

README.md has a longer example, which the tests run.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import aclosing
from types import TracebackType
from typing import Self

import grpc
from google.longrunning import operations_pb2

from topwork.rpc import calls, stream_calls
from topwork.rpc.calls import CallFailed
from topwork.rpc.exchange import IMAGES_A_MESSAGE, Exchange, StreamResult
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

__all__ = ["AsyncClient", "CallFailed", "Client", "StreamResult", "progress", "result"]


class Client:
    """A blocking client of one server. Safe to use from several threads."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=calls.OPTIONS)
        self._classifier = classify_grpc.ClassifierServiceStub(self._channel)
        self._models = model_grpc.ModelServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def wait_until_ready(self, seconds: float) -> None:
        """Return when the server can be reached. Raises CallFailed if it cannot in ``seconds``."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            raise calls.unreachable(self._address, seconds) from None

    def classify(
        self,
        model: str,
        images: Iterable[bytes],
        *,
        revision: int = 0,
        top_k: int = 0,
        timeout: float | None = None,
    ) -> classify_pb.ClassifyResponse:
        """Return one result an encoded image, in order; see topwork.v1.ClassifyRequest.

        ``timeout`` in seconds. Raises CallFailed; a bad image is an error in its own result.
        """
        request = calls.classify_request(model, images, revision, top_k)
        try:
            return self._classifier.Classify(request, timeout=timeout)
        except grpc.RpcError as error:
            raise calls.failed(error) from error

    def classify_stream(
        self,
        model: str,
        images: Iterable[bytes],
        *,
        revision: int = 0,
        top_k: int = 0,
        images_per_message: int = IMAGES_A_MESSAGE,
        timeout: float | None = None,
    ) -> Generator[StreamResult, None, None]:
        """Yield one result an encoded image, in order, for any number of images.

        Takes ``images`` as fast as the server has room for them, in a thread of its own, and never
        holds more than some hundred. They wait until their message is complete: a source that is
        slower than the server, such as a camera, wants one ``images_per_message``. ``timeout`` in
        seconds is each message's. A bad image is an error in its own result; raises CallFailed, or
        what ``images`` raises, after the results of all images before.
        """
        exchange = Exchange(
            model,
            self.model(model).limits,
            revision=revision,
            top_k=top_k,
            images_per_message=images_per_message,
            timeout=timeout,
        )
        yield from stream_calls.blocking(self._classifier.StreamClassify, images, exchange)

    def add_class(
        self,
        model: str,
        label: str,
        images: Iterable[tuple[str, bytes]],
        *,
        request_id: str = "",
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """Upload (name, encoded image) pairs of a new label and return the accepted operation.

        A repeated call with the same ``request_id`` (a UUID) is the same operation. Raises
        CallFailed.
        """
        try:
            return self._models.AddClass(
                calls.add_class_requests(model, label, images, request_id), timeout=timeout
            )
        except grpc.RpcError as error:
            raise calls.failed(error) from error

    def watch(self, operation: str) -> Iterator[operations_pb2.Operation]:
        """Yield the states of ``operation`` (its name) until it is finished. Raises CallFailed."""
        call = self._models.WatchOperation(model_pb.WatchOperationRequest(name=operation))
        try:
            for response in call:
                yield response.operation
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            call.cancel()  # for those who stop looking before the end

    def model(self, model: str) -> model_pb.Model:
        """Return a model. Raises CallFailed."""
        try:
            return self._models.GetModel(model_pb.GetModelRequest(name=f"models/{model}"))
        except grpc.RpcError as error:
            raise calls.failed(error) from error

    def models(self) -> Iterator[model_pb.Model]:
        """Yield all models, in the order of their names. Raises CallFailed."""
        token = ""
        while True:
            try:
                page = self._models.ListModels(model_pb.ListModelsRequest(page_token=token))
            except grpc.RpcError as error:
                raise calls.failed(error) from error
            yield from page.models
            if not (token := page.next_page_token):
                return


class AsyncClient:
    """The same for asyncio; belongs to the event loop that it was made in."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=calls.OPTIONS)
        self._classifier: classify_grpc.ClassifierServiceAsyncStub = (
            classify_grpc.ClassifierServiceStub(self._channel)
        )
        self._models: model_grpc.ModelServiceAsyncStub = model_grpc.ModelServiceStub(self._channel)

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
            raise calls.unreachable(self._address, seconds) from None

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
        try:
            return await self._classifier.Classify(request, timeout=timeout)
        except grpc.RpcError as error:
            raise calls.failed(error) from error

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
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """See Client.add_class."""
        try:
            return await self._models.AddClass(
                calls.add_class_requests(model, label, images, request_id), timeout=timeout
            )
        except grpc.RpcError as error:
            raise calls.failed(error) from error

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
        try:
            return await self._models.GetModel(model_pb.GetModelRequest(name=f"models/{model}"))
        except grpc.RpcError as error:
            raise calls.failed(error) from error

    async def models(self) -> AsyncIterator[model_pb.Model]:
        """See Client.models."""
        token = ""
        while True:
            try:
                page = await self._models.ListModels(model_pb.ListModelsRequest(page_token=token))
            except grpc.RpcError as error:
                raise calls.failed(error) from error
            for model in page.models:
                yield model
            if not (token := page.next_page_token):
                return


def result(operation: operations_pb2.Operation) -> model_pb.AddClassResponse:
    """Return what a finished AddClass operation gave. Raises CallFailed if it failed."""
    if operation.HasField("error"):
        raise CallFailed(operation.error)
    response = model_pb.AddClassResponse()
    if not operation.response.Unpack(response):
        raise ValueError(f"{operation.name} is not a finished AddClass operation")
    return response


def progress(operation: operations_pb2.Operation) -> model_pb.AddClassMetadata:
    """Return how far an AddClass operation is."""
    metadata = model_pb.AddClassMetadata()
    if not operation.metadata.Unpack(metadata):
        raise ValueError(f"{operation.name} is not an AddClass operation")
    return metadata
