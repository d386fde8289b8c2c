"""The Python client for asyncio. `make proto` generates the blocking one from this file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc

from topwork.client import async_calls, calls
from topwork.client.async_evaluations import AsyncEvaluations
from topwork.client.async_review import AsyncReview
from topwork.client.credentials import ANONYMOUS, Credentials, with_metadata
from topwork.client.images import ImageLike, NamedImage, labelled
from topwork.client.inputs import to_input
from topwork.client.results import (
    ClassifyResult,
    ExplainResult,
    ImageResult,
    Operation,
    StreamResult,
)
from topwork.client.stream_window import IMAGES_PER_MESSAGE, StreamWindow
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import example_pb2 as example_pb
from topwork.v1 import model_lifecycle_pb2 as lifecycle_pb
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc
from topwork.v1 import review_service_pb2_grpc as review_grpc
from topwork.v1 import revision_pb2 as revision_pb


class AsyncClient(AsyncEvaluations, AsyncReview):
    """A client of one server for asyncio. Use it only in the event loop that it was made in.

    Without ``credentials`` it uses plaintext and no token.
    """

    def __init__(self, address: str, credentials: Credentials = ANONYMOUS) -> None:
        self._address = address
        self._tls = credentials.tls
        metadata = credentials.metadata(address)  # may raise: before a channel is open
        self._channel = async_calls.open_channel(address, credentials)
        channel = with_metadata(self._channel, metadata)
        self._classifier: classify_grpc.ClassifierServiceAsyncStub = (
            classify_grpc.ClassifierServiceStub(channel)
        )
        self._models: model_grpc.ModelServiceAsyncStub = model_grpc.ModelServiceStub(channel)
        self._review: review_grpc.ReviewServiceAsyncStub = review_grpc.ReviewServiceStub(channel)
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
        """Wait until the server can be reached. Raises CallFailed after ``seconds``."""
        await async_calls.wait_until_ready(self._channel, self._address, seconds, tls=self._tls)

    async def classify(
        self,
        model: str,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        revision: int = 0,
        top_k: int = 0,
        timeout: float | None = None,
    ) -> ClassifyResult:
        """Classify encoded images; the results are in their order. See topwork.v1.ClassifyRequest.

        An image is its bytes, the path of its file, a file that is open in binary mode, an image of
        Pillow, or a NumPy array: uint8 (H, W, 3), RGB, or (H, W), sent as PNG without loss. For a
        model of embeddings ``images`` is a NumPy array, float32 (N, D), an iterable of its rows, or
        ``topwork.embeddings``, which names the space.
        ``timeout`` in seconds. Raises CallFailed, and OSError if a file cannot be read; an invalid
        image is an error in its own result.
        """
        encoded = await async_calls.contents(images)
        request = calls.classify_request(model, encoded, revision, top_k)
        response = await async_calls.call_unary(self._classifier.Classify, request, timeout)
        return ClassifyResult.of(response)

    async def explain(
        self,
        model: str,
        image: ImageLike,
        *,
        label: str = "",
        neighbours: int | None = None,
        revision: int = 0,
        top_k: int = 0,
        timeout: float | None = None,
    ) -> ExplainResult:
        """Classify an image, and explain a label: evidence by position, and nearest examples.

        An empty ``label`` is the most probable one. ``neighbours`` need the role train; None: 5
        with that role, else 0. ``image`` is as in ``classify``. Raises CallFailed, also for an
        invalid image, and OSError if a file cannot be read.
        """
        (encoded,) = await async_calls.contents([image])
        request = classify_pb.ExplainRequest(
            model=f"models/{model}",
            revision=revision,
            label=label,
            neighbours=neighbours,
            top_k=top_k,
        )
        if isinstance(encoded, bytes):
            request.image = encoded
        else:
            request.input.CopyFrom(to_input(encoded))
        response = await async_calls.call_unary(self._classifier.Explain, request, timeout)
        return ExplainResult.of(response)

    async def classify_stream(
        self,
        model: str,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        revision: int = 0,
        top_k: int = 0,
        images_per_message: int = IMAGES_PER_MESSAGE,
        timeout: float | None = None,
    ) -> AsyncGenerator[StreamResult, None]:
        """Yield the result of each encoded image, in order, for any number of images.

        Iterates over ``images`` as fast as the server answers, in the event loop, with a few
        hundred in flight. An image waits until its message is complete: set ``images_per_message``
        to 1 for a source that is slower than the server, such as a camera. ``timeout`` in seconds
        applies to each message. An invalid image is an error in its own result. Raises CallFailed,
        and the errors of ``images`` and their files, after the results of all images before.
        """
        described = await self.model(model)
        window = StreamWindow(
            model,
            described.limits,
            revision=revision,
            top_k=top_k,
            images_per_message=images_per_message,
            timeout=timeout,
        )
        stream = async_calls.stream(self._classifier.StreamClassify, images, window)
        async with aclosing(stream) as results:
            async for result in results:
                yield result

    async def predict(
        self,
        model: str,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        revision: int = 0,
        top_k: int = 0,
        timeout: float | None = None,
    ) -> list[ImageResult]:
        """Return the result of each image, in order, as ``topwork.Model.predict`` does.

        For any number of images; see ``classify_stream``, which yields them one by one.
        """
        stream = self.classify_stream(
            model, images, revision=revision, top_k=top_k, timeout=timeout
        )
        async with aclosing(stream) as answers:
            return [answer.result async for answer in answers]

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

        An image is as in ``classify``, or a pair of its display name and the image; the default
        display name is the file's path. ``request_id`` (a UUID) is an idempotency key, as in every
        change: a repeated call returns the same operation. Raises CallFailed, and the errors of
        ``images`` and their files, after which the model does not change.
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
        """Upload more images of an existing label; see ``add_class``."""
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

    async def add_classes(
        self,
        model: str,
        classes: Mapping[str, Iterable[NamedImage]],
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Upload the images of several labels, new ones or not, as one change; see ``add_class``.

        ``classes`` are the images by label.
        """
        config = change_pb.AddClassesConfig(
            model=f"models/{model}",
            labels=classes,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        first = change_pb.AddClassesRequest(config=config)
        return Operation.of(
            await async_calls.upload(self._models.AddClasses, first, labelled(classes), timeout)
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
        """Remove a label with its images, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RemoveClassRequest(
            model=f"models/{model}",
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(
            await async_calls.call_unary(self._models.RemoveClass, request, timeout)
        )

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
        """Rename a label, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RenameClassRequest(
            model=f"models/{model}",
            label=label,
            new_label=new_label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(
            await async_calls.call_unary(self._models.RenameClass, request, timeout)
        )

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
        """Solve a model's head again, and return the accepted operation. Raises CallFailed."""
        request = change_pb.RetrainRequest(
            model=f"models/{model}",
            head=head,
            normalisation=normalisation,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(await async_calls.call_unary(self._models.Retrain, request, timeout))

    async def remove_examples(
        self,
        model: str,
        digests: Iterable[str],
        *,
        label: str = "",
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Remove single examples, and return the accepted operation. Raises CallFailed.

        ``digests`` are image digests, such as ``Example.digest``. With ``label`` the examples are
        removed from that label only.
        """
        request = change_pb.RemoveExamplesRequest(
            model=f"models/{model}",
            digests=digests,
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(
            await async_calls.call_unary(self._models.RemoveExamples, request, timeout)
        )

    async def move_examples(
        self,
        model: str,
        digests: Iterable[str],
        label: str,
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> Operation:
        """Move single examples to ``label``, an existing one or a new one; see remove_examples."""
        request = change_pb.MoveExamplesRequest(
            model=f"models/{model}",
            digests=digests,
            label=label,
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        return Operation.of(
            await async_calls.call_unary(self._models.MoveExamples, request, timeout)
        )

    async def rollback(
        self,
        model: str,
        revision: int = 0,
        *,
        expected_revision: int = 0,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> model_pb.Model:
        """Serve ``revision`` (0: the previous one), and return the model. Raises CallFailed."""
        request = model_pb.RollbackRequest(
            model=f"models/{model}",
            revision=revision,
            expected_revision=expected_revision,
            validate_only=validate_only,
        )
        return await async_calls.call_unary(self._models.Rollback, request, timeout)

    async def pin_revision(
        self,
        model: str,
        revision: int,
        *,
        unpin: bool = False,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> model_pb.Model:
        """Pin a revision against deletion, or unpin it; return the model. Raises CallFailed."""
        request = model_pb.PinRevisionRequest(
            model=f"models/{model}", revision=revision, unpin=unpin, validate_only=validate_only
        )
        return await async_calls.call_unary(self._models.PinRevision, request, timeout)

    async def create_model(
        self,
        model: str,
        *,
        backbone: str = "",
        like: str = "",
        space: str = "",
        width: int = 0,
        seed: int = 0,
        head: str = "",
        normalisation: str = "",
        request_id: str = "",
        timeout: float | None = None,
    ) -> model_pb.Model:
        """Create a model without labels, and return it. Raises CallFailed.

        ``backbone`` is a digest or a name, or it is that of the model ``like``; neither: the only
        backbone of the repository. With ``space`` the model takes embeddings that its clients
        compute, of ``width`` numbers, and needs no backbone. It serves once ``add_class`` has given
        it two labels.
        """
        request = lifecycle_pb.CreateModelRequest(
            model=f"models/{model}",
            seed=seed,
            head=head,
            normalisation=normalisation,
            request_id=request_id or calls.new_request_id(),
        )
        if space:
            request.embedding.space, request.embedding.width = space, width
        elif like:
            request.like = f"models/{like}"
        else:
            request.backbone = backbone
        return await async_calls.call_unary(self._models.CreateModel, request, timeout)

    async def copy_model(
        self,
        source: str,
        model: str,
        *,
        revision: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> model_pb.Model:
        """Copy a revision (0: the serving one) into a new model; return it. Raises CallFailed."""
        request = lifecycle_pb.CopyModelRequest(
            source=f"models/{source}",
            revision=revision,
            model=f"models/{model}",
            request_id=request_id or calls.new_request_id(),
        )
        return await async_calls.call_unary(self._models.CopyModel, request, timeout)

    async def delete_model(
        self, model: str, *, force: bool = False, timeout: float | None = None
    ) -> None:
        """Delete a model; ``force``: even if it is in use. Raises CallFailed."""
        request = lifecycle_pb.DeleteModelRequest(model=f"models/{model}", force=force)
        await async_calls.call_unary(self._models.DeleteModel, request, timeout)

    async def undelete_model(self, model: str, *, timeout: float | None = None) -> model_pb.Model:
        """Restore a deleted model, and return it. Raises CallFailed."""
        request = lifecycle_pb.UndeleteModelRequest(model=f"models/{model}")
        return await async_calls.call_unary(self._models.UndeleteModel, request, timeout)

    async def backbones(self) -> AsyncIterator[lifecycle_pb.StoredBackbone]:
        """Yield the backbones that models can be created with. Raises CallFailed."""
        request = lifecycle_pb.ListBackbonesRequest()
        async for page in async_calls.pages(self._models.ListBackbones, request):
            for backbone in page.backbones:
                yield backbone

    async def watch(self, operation: str) -> AsyncIterator[Operation]:
        """Yield the states of ``operation`` (a name) until it is finished. Raises CallFailed."""
        call = self._models.WatchOperation(model_pb.WatchOperationRequest(name=operation))
        try:
            async for response in call:
                yield Operation.of(response.operation)
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            call.cancel()  # the caller may stop before the end

    async def model(self, model: str) -> model_pb.Model:
        """Return a model. Raises CallFailed."""
        request = model_pb.GetModelRequest(name=f"models/{model}")
        return await async_calls.call_unary(self._models.GetModel, request)

    async def models(self) -> AsyncIterator[model_pb.Model]:
        """Yield all models, in the order of their names. Raises CallFailed."""
        async for page in async_calls.pages(self._models.ListModels, model_pb.ListModelsRequest()):
            for model in page.models:
                yield model

    async def revisions(self, model: str) -> AsyncIterator[revision_pb.Revision]:
        """Yield all revisions of a model, newest first. Raises CallFailed."""
        request = model_pb.ListRevisionsRequest(model=f"models/{model}")
        async for page in async_calls.pages(self._models.ListRevisions, request):
            for revision in page.revisions:
                yield revision

    async def report(self, model: str, revision: int) -> bytes:
        """Return the report of a revision, an HTML file. Raises CallFailed."""
        request = revision_pb.GetReportRequest(name=f"models/{model}/revisions/{revision}/report")
        return (await async_calls.call_unary(self._models.GetReport, request)).html

    async def list_examples(
        self, model: str, wanted: str = "", *, previews: bool = False, revision: int = 0
    ) -> AsyncIterator[example_pb.Example]:
        """Yield the examples of a model that match the filter ``wanted``, the most doubtful first.

        A filter is such as ``suspect = true AND label = "tulips"``. ``previews``: with all fields.
        All are of one revision, 0: the serving one. Raises CallFailed.
        """
        request = example_pb.ListExamplesRequest(
            model=f"models/{model}",
            filter=wanted,
            view=example_pb.EXAMPLE_VIEW_FULL if previews else example_pb.EXAMPLE_VIEW_BASIC,
            revision=revision,
        )
        async for page in async_calls.pages(self._models.ListExamples, request):
            for example in page.examples:
                yield example

    async def get_example(
        self, model: str, digest: str, *, label: str = "", revision: int = 0
    ) -> example_pb.Example:
        """Return an example with all fields. Raises CallFailed.

        ``label`` is one of the image's labels; empty: the most doubtful one.
        """
        request = example_pb.GetExampleRequest(
            name=f"models/{model}/examples/{digest}", label=label, revision=revision
        )
        return await async_calls.call_unary(self._models.GetExample, request)

    async def operations(self, wanted: str = "") -> AsyncIterator[Operation]:
        """Yield the operations that match the filter ``wanted``, oldest first.

        A filter is such as ``model = "models/flowers" AND done = false``. Raises CallFailed.
        """
        request = operations_pb2.ListOperationsRequest(filter=wanted)
        async for page in async_calls.pages(self._operations.ListOperations, request):
            for operation in page.operations:
                yield Operation.of(operation)

    async def cancel(self, operation: str) -> None:
        """Cancel ``operation`` (a name) before its next step. Raises CallFailed."""
        request = operations_pb2.CancelOperationRequest(name=operation)
        await async_calls.call_unary(self._operations.CancelOperation, request)
