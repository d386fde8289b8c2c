"""The blocking client.

    with Client("127.0.0.1:50051") as client:
        answer = client.classify("flowers", [photo])
        print(answer.results[0].classification.predictions[0].label)

README.md has a longer example, which the tests run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
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


class Client:
    """A blocking client of one server. Safe to use from several threads.

    Without ``credentials`` it speaks plaintext.
    """

    def __init__(self, address: str, credentials: Credentials = NOTHING) -> None:
        self._address = address
        self._tls = credentials.tls
        metadata = credentials.metadata(address)  # before there is something to close
        self._channel = credentials.open_channel(address, calls.options_for(address))
        channel = bearing(self._channel, metadata)
        self._classifier = classify_grpc.ClassifierServiceStub(channel)
        self._models = model_grpc.ModelServiceStub(channel)
        self._operations = operations_pb2_grpc.OperationsStub(channel)

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
            raise calls.unreachable(self._address, seconds, tls=self._tls) from None

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
        return calls.ask(self._classifier.Classify, request, timeout)

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
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """Upload (name, encoded image) pairs of a new label and return the accepted operation.

        A repeated call with the same ``request_id`` (a UUID) is the same operation; so it is with
        every change. Raises CallFailed, or what ``images`` raises: then nothing is learnt.
        """
        requests = calls.add_class_requests(model, label, images, request_id, options)
        return calls.upload(self._models.AddClass, requests, timeout)

    def add_examples(
        self,
        model: str,
        label: str,
        images: Iterable[tuple[str, bytes]],
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """Upload (name, encoded image) pairs of a label that the model has. Raises CallFailed."""
        requests = calls.add_examples_requests(model, label, images, request_id, options)
        return calls.upload(self._models.AddExamples, requests, timeout)

    def remove_class(
        self,
        model: str,
        label: str,
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """Let a model forget a label, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RemoveClassRequest(
            model=f"models/{model}",
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return calls.ask(self._models.RemoveClass, request, timeout)

    def rename_class(
        self,
        model: str,
        label: str,
        new_label: str,
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """Give a label another name, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RenameClassRequest(
            model=f"models/{model}",
            label=label,
            new_label=new_label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return calls.ask(self._models.RenameClass, request, timeout)

    def retrain(
        self,
        model: str,
        *,
        head: str = "",
        normalisation: str = "",
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> operations_pb2.Operation:
        """Solve a model's head anew, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RetrainRequest(
            model=f"models/{model}",
            head=head,
            normalisation=normalisation,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return calls.ask(self._models.Retrain, request, timeout)

    def rollback(
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
        return calls.ask(self._models.Rollback, request, timeout)

    def pin_revision(
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
        return calls.ask(self._models.PinRevision, request, timeout)

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
        return calls.ask(self._models.GetModel, model_pb.GetModelRequest(name=f"models/{model}"))

    def models(self) -> Iterator[model_pb.Model]:
        """Yield all models, in the order of their names. Raises CallFailed."""
        token = ""
        while True:
            request = model_pb.ListModelsRequest(page_token=token)
            page = calls.ask(self._models.ListModels, request)
            yield from page.models
            if not (token := page.next_page_token):
                return

    def revisions(self, model: str) -> Iterator[revision_pb.Revision]:
        """Yield all revisions of a model, newest first. Raises CallFailed."""
        token = ""
        while True:
            request = model_pb.ListRevisionsRequest(model=f"models/{model}", page_token=token)
            page = calls.ask(self._models.ListRevisions, request)
            yield from page.revisions
            if not (token := page.next_page_token):
                return

    def operations(self, wanted: str = "") -> Iterator[operations_pb2.Operation]:
        """Yield the operations that the filter ``wanted`` lets pass, oldest first.

        Such as ``model = "models/flowers" AND done = false``. Raises CallFailed.
        """
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(filter=wanted, page_token=token)
            page = calls.ask(self._operations.ListOperations, request)
            yield from page.operations
            if not (token := page.next_page_token):
                return

    def cancel(self, operation: str) -> None:
        """End ``operation`` (its name) before its next step. Raises CallFailed."""
        request = operations_pb2.CancelOperationRequest(name=operation)
        calls.ask(self._operations.CancelOperation, request)
