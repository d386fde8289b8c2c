"""The Python client, blocking (Client) and for asyncio (AsyncClient).

>>> from topwork.rpc.client import Client                           # doctest: +SKIP
>>> with Client("127.0.0.1:50051") as client:                       # doctest: +SKIP
...     answer = client.classify("flowers", [photo])
...     print(answer.results[0].classification.predictions[0].label)
roses
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Self

import grpc
from google.longrunning import operations_pb2
from google.rpc import code_pb2, status_pb2

from topwork.bundle.limits import DEFAULT_LIMITS
from topwork.errors import TopworkError
from topwork.rpc import status as statuses
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

MESSAGE_BYTES = 2 * 2**20
"""Images are sent in messages of about this size; a larger image has its own."""

_OPTIONS = [
    ("grpc.max_receive_message_length", DEFAULT_LIMITS.max_message_bytes),
    ("grpc.max_send_message_length", DEFAULT_LIMITS.max_message_bytes),
]


class CallFailed(TopworkError):
    """A call or an operation ended with an error; the attributes say which.

    ``code`` is the name of a google.rpc.Code such as NOT_FOUND, ``reason`` the stable identifier in
    ErrorInfo, ``retry_after`` the seconds after which a retry makes sense (0: not said), ``status``
    all that the server said.
    """

    def __init__(self, status: status_pb2.Status) -> None:
        self.code = code_pb2.Code.Name(status.code)
        self.retry_after = statuses.retry_after(status)
        self.status = status
        super().__init__(status.message, reason=statuses.reason(status) or self.code)


class Client:
    """A blocking client of one server. Safe to use from several threads."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
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
            raise _unreachable(self._address, seconds) from None

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
        request = _classify_request(model, images, revision, top_k)
        try:
            return self._classifier.Classify(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _failed(error) from error

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
                _add_class_requests(model, label, images, request_id), timeout=timeout
            )
        except grpc.RpcError as error:
            raise _failed(error) from error

    def watch(self, operation: str) -> Iterator[operations_pb2.Operation]:
        """Yield the states of ``operation`` (its name) until it is finished. Raises CallFailed."""
        try:
            for response in self._models.WatchOperation(
                model_pb.WatchOperationRequest(name=operation)
            ):
                yield response.operation
        except grpc.RpcError as error:
            raise _failed(error) from error

    def model(self, model: str) -> model_pb.Model:
        """Return a model. Raises CallFailed."""
        try:
            return self._models.GetModel(model_pb.GetModelRequest(name=f"models/{model}"))
        except grpc.RpcError as error:
            raise _failed(error) from error

    def models(self) -> Iterator[model_pb.Model]:
        """Yield all models, in the order of their names. Raises CallFailed."""
        token = ""
        while True:
            try:
                page = self._models.ListModels(model_pb.ListModelsRequest(page_token=token))
            except grpc.RpcError as error:
                raise _failed(error) from error
            yield from page.models
            if not (token := page.next_page_token):
                return


class AsyncClient:
    """The same for asyncio; belongs to the event loop that it was made in."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
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
            raise _unreachable(self._address, seconds) from None

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
        request = _classify_request(model, images, revision, top_k)
        try:
            return await self._classifier.Classify(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _failed(error) from error

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
                _add_class_requests(model, label, images, request_id), timeout=timeout
            )
        except grpc.RpcError as error:
            raise _failed(error) from error

    async def watch(self, operation: str) -> AsyncIterator[operations_pb2.Operation]:
        """See Client.watch."""
        try:
            async for response in self._models.WatchOperation(
                model_pb.WatchOperationRequest(name=operation)
            ):
                yield response.operation
        except grpc.RpcError as error:
            raise _failed(error) from error

    async def model(self, model: str) -> model_pb.Model:
        """See Client.model."""
        try:
            return await self._models.GetModel(model_pb.GetModelRequest(name=f"models/{model}"))
        except grpc.RpcError as error:
            raise _failed(error) from error

    async def models(self) -> AsyncIterator[model_pb.Model]:
        """See Client.models."""
        token = ""
        while True:
            try:
                page = await self._models.ListModels(model_pb.ListModelsRequest(page_token=token))
            except grpc.RpcError as error:
                raise _failed(error) from error
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


def _classify_request(
    model: str, images: Iterable[bytes], revision: int, top_k: int
) -> classify_pb.ClassifyRequest:
    return classify_pb.ClassifyRequest(
        model=f"models/{model}", images=images, revision=revision, top_k=top_k
    )


def _add_class_requests(
    model: str, label: str, images: Iterable[tuple[str, bytes]], request_id: str
) -> Iterator[model_pb.AddClassRequest]:
    config = model_pb.AddClassConfig(
        model=f"models/{model}", label=label, request_id=request_id or str(uuid.uuid4())
    )
    request = model_pb.AddClassRequest(config=config)
    length = 0
    for name, content in images:
        if length and length + len(content) > MESSAGE_BYTES:
            yield request
            request, length = model_pb.AddClassRequest(), 0
        request.images.add(content=content, display_name=name)
        length += len(content)
    yield request


def _unreachable(address: str, seconds: float) -> CallFailed:
    text = f"no server answers at {address} within {seconds:g} s"
    return CallFailed(status_pb2.Status(code=code_pb2.UNAVAILABLE, message=text))


def _failed(error: grpc.RpcError) -> CallFailed:
    """Return the error of a call that failed, blocking or not."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), "grpc raises nothing else"
    for key, value in error.trailing_metadata() or ():
        if key == statuses.DETAILS_KEY:
            return CallFailed(status_pb2.Status.FromString(value))
    return CallFailed(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))
