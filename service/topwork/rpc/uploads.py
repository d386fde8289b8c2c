"""How an AddClass stream becomes a durable job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from topwork.bundle.limits import Limits
from topwork.bundle.names import check_label
from topwork.bundle.store import Repository
from topwork.engine.jobs import AddClassJob, SkippedUpload, Upload
from topwork.engine.operations import Operation, Operations, check_same, new_request_id
from topwork.engine.retrain import too_many_labels
from topwork.engine.serving.registry import Registry
from topwork.errors import AlreadyExists, DeadlinePassed, InvalidInput, NotFound, Unavailable
from topwork.rpc.convert import resource_id
from topwork.v1 import model_service_pb2 as model_pb

SILENCE_SECONDS = 60.0
"""How long an upload may send nothing."""


class Uploads:
    """Receives AddClass calls: images first, then the operation, and only then the answer."""

    def __init__(
        self, repository: Repository, registry: Registry, operations: Operations, limits: Limits
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._operations = operations
        self._limits = limits

    async def receive(self, requests: AsyncIterator[model_pb.AddClassRequest]) -> Operation:
        """Store an upload and its operation durably and return the operation.

        A request id that is known returns its operation at once, whatever images follow. Raises
        InvalidInput, NotFound, AlreadyExists, NotReady.
        """
        first = await _next(requests)
        if first is None or not first.HasField("config"):
            raise InvalidInput("the first message has no config", field="config")
        model = resource_id(first.config.model, collection="models", field="config.model")
        label = check_label(first.config.label, limits=self._limits, field="config.label")
        request_id = new_request_id(first.config.request_id)
        labels = self._registry.serving(model).labels
        try:
            operation = await self._operations.get(request_id)
        except NotFound:
            pass
        else:
            check_same(operation, model, label)
            return operation
        if label in labels:
            raise AlreadyExists(
                f"model {model!r} has a label {label!r} already",
                kind="label",
                resource=label,
                reason="LABEL_EXISTS",
            )
        if len(labels) >= self._limits.max_labels:
            raise too_many_labels(model, len(labels), self._limits)
        uploads, refused = await self._store(first, requests)
        job = AddClassJob(
            model=model, label=label, uploads=uploads, refused=refused, accepted=time.time()
        )
        return await self._operations.add_class(job, request_id)

    async def _store(
        self, message: model_pb.AddClassRequest, requests: AsyncIterator[model_pb.AddClassRequest]
    ) -> tuple[tuple[Upload, ...], tuple[SkippedUpload, ...]]:
        """Return the stored images and those that were refused for their length."""
        stored: list[Upload | SkippedUpload] = []
        while True:
            most = self._limits.max_images_per_upload
            if len(stored) + len(message.images) > most:
                raise InvalidInput(
                    f"the upload has more than {most} images, which is the limit",
                    field="images",
                    reason="TOO_MANY_IMAGES",
                )
            # Side by side: each waits for the disk, which syncs several at the price of one.
            stored += await asyncio.gather(
                *(
                    self._store_one(
                        image.display_name[:500] or f"images[{position}]", image.content
                    )
                    for position, image in enumerate(message.images, len(stored))
                )
            )
            following = await _next(requests)
            if following is None:
                break
            message = following
            if message.HasField("config"):
                raise InvalidInput("only the first message may have a config", field="config")
        if not stored:
            raise InvalidInput("the upload has no image", field="images")
        return (
            tuple(one for one in stored if isinstance(one, Upload)),
            tuple(one for one in stored if isinstance(one, SkippedUpload)),
        )

    async def _store_one(self, name: str, content: bytes) -> Upload | SkippedUpload:
        if len(content) > self._limits.max_image_bytes:
            text = f"the image is {len(content)} bytes; the limit is {self._limits.max_image_bytes}"
            return SkippedUpload(name=name, reason="IMAGE_TOO_LARGE", message=text)
        try:
            digest = await asyncio.to_thread(self._repository.put_image, content)
        except OSError as error:  # such as a full disk
            raise Unavailable(
                f"{name} cannot be stored: {error.strerror}", reason="STORAGE"
            ) from error
        return Upload(name=name, digest=digest)


async def _next(
    requests: AsyncIterator[model_pb.AddClassRequest],
) -> model_pb.AddClassRequest | None:
    """Return the next message, None after the last. Raises DeadlinePassed if none comes."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            return await anext(requests, None)
    except TimeoutError:
        raise DeadlinePassed(
            f"the upload was silent for {SILENCE_SECONDS:.0f} s", reason="UPLOAD_SILENT"
        ) from None
