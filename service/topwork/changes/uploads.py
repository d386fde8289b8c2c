"""Storage of uploaded images in the repository, within the limits of an upload."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from topwork.bundle.draft import Current
from topwork.bundle.names import compose_label
from topwork.bundle.store import Repository
from topwork.changes.jobs import SkippedUpload, Upload
from topwork.changes.kinds import named_labels
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.errors import Corrupt, DeadlinePassed, ImageError, InvalidInput, Unavailable
from topwork.inputs.embeddings import EmbeddingSpec, SentEmbedding, checked, to_content
from topwork.inputs.kinds import check_kind, kind_given, kind_of
from topwork.inputs.spec import InputSpec, SentContent
from topwork.limits import ServerLimits

SILENCE_SECONDS = 60.0
"""Raising it lets a client pause longer within an upload."""

MIN_BYTES_PER_SECOND = 256
"""Raising it ends slow uploads sooner: their minimum average rate, after SILENCE_SECONDS."""

RENEW_SECONDS = 600.0
"""Raising it renews the images' mtimes less often during an upload; gc must spare files longer."""


class Quota(Protocol):
    """Quota of an upload; see ``topwork.changes.quota``."""

    def check(self, total: int, coming: int, images: int) -> None:
        """Raise QuotaExceeded; see ``ModelQuota.check``."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The inputs that a model takes."""

    model: str
    spec: InputSpec


class Uploads:
    """Receives uploads; returned images are durably stored."""

    def __init__(self, repository: Repository, limits: ServerLimits) -> None:
        self._repository = repository
        self._limits = limits

    async def request(self, items: AsyncIterator[UploadItem]) -> ChangeRequest:
        """Return the request, which comes first. Raises InvalidInput, DeadlinePassed."""
        first, _ = await _next(items, SILENCE_SECONDS)
        if first is None:
            raise InvalidInput("the upload has no message", field="config")
        if not isinstance(first, ChangeRequest):
            raise InvalidInput("the first message has no config", field="config")
        return first

    async def taken(self, current: Current) -> Taken:
        """Return the inputs that a model takes. Raises Corrupt if its backbone is damaged."""
        info = await asyncio.to_thread(self._repository.backbone, current)
        return Taken(current.model, info.preprocess)

    async def store(
        self,
        items: AsyncIterator[UploadItem],
        quota: Quota,
        labels: Sequence[str] | None = (),
        *,
        taken: Taken,
        may_be_empty: bool = False,
    ) -> tuple[tuple[Upload, ...], tuple[SkippedUpload, ...], int]:
        """Store the images of ``items``; return the stored, the refused, and the total bytes.

        Refused are images that are too large, and embeddings that do not fit the model's space.
        Each image must have one of the ``labels``, and each label an image; without labels no image
        may have one, and with None any. Raises InvalidInput, also for inputs of another kind than
        ``taken``, DeadlinePassed, the errors of ``quota``, and Unavailable if an image cannot be
        stored.
        """
        stored: list[Upload | SkippedUpload] = []
        size = 0
        renewed = time.monotonic()
        timeout = SILENCE_SECONDS
        while True:
            images, waited = await _next(items, timeout)
            if images is None:
                break
            if isinstance(images, ChangeRequest):
                raise InvalidInput("only the first message may have a config", field="config")
            if time.monotonic() - renewed >= RENEW_SECONDS:
                renewed = time.monotonic()
                async with self.holding(_stored_uploads(stored)):
                    pass
            coming = sum(image.size for image in images)
            size += coming
            self._check_limits(len(stored) + len(images), size)
            images = self._with_labels(images, labels, len(stored))
            for image in images:
                kind = kind_given(image.content)
                check_kind(kind, taken.spec, model=taken.model, field="images")
            await asyncio.to_thread(quota.check, size, coming, len(images))
            stored += await self._store_all(images, len(stored), taken.spec)
            timeout = min(SILENCE_SECONDS, timeout - waited + coming / MIN_BYTES_PER_SECOND)
            del images  # frees memory while the next message is received
        if not stored and not may_be_empty:
            raise InvalidInput("the upload has no image", field="images")
        if lacking := sorted({*(labels or ())} - {image.label for image in stored}):
            text = f"the upload has no image of {named_labels(lacking)}"
            raise InvalidInput(text, field="config.labels")
        refused = tuple(image for image in stored if isinstance(image, SkippedUpload))
        return _stored_uploads(stored), refused, size

    @contextlib.asynccontextmanager
    async def holding(self, uploads: tuple[Upload, ...]) -> AsyncIterator[None]:
        """Protect images from gc while the block runs; see ``Stored.holding``.

        Raises Unavailable if an image was deleted since it was stored, or the lock fails.
        """
        hold = self._repository.holding({upload.digest for upload in uploads})
        entering = asyncio.ensure_future(asyncio.to_thread(hold.__enter__))
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(lambda done: done.exception() is None and _release(hold))
            raise
        except Corrupt as error:
            raise Unavailable(
                f"{error}: it was deleted before the upload ended; upload again",
                reason="UPLOAD_EXPIRED",
            ) from error
        except OSError as error:
            raise Unavailable(
                f"images cannot be protected from gc: {error.strerror}", reason="STORAGE"
            ) from error
        try:
            yield
        finally:
            hold.__exit__(None, None, None)

    def _check_limits(self, images: int, size: int) -> None:
        """Raise InvalidInput if an upload has too many images, or too many bytes of them."""
        most = self._limits.max_images_per_upload
        if images > most:
            raise InvalidInput(
                f"the upload has more than {most} images, which is the limit",
                field="images",
                reason="TOO_MANY_IMAGES",
            )
        if size > self._limits.max_upload_bytes:
            raise InvalidInput(
                f"the upload has more than {self._limits.max_upload_bytes} bytes of images, "
                "which is the limit",
                field="images",
                reason="UPLOAD_TOO_LARGE",
            )

    def _with_labels(
        self, images: Sequence[UploadedImage], labels: Sequence[str] | None, before: int
    ) -> list[UploadedImage]:
        """Return images, after ``before`` earlier ones, with labels in composed form.

        Raises InvalidInput for a label that is not one of ``labels``, or any if there are none.
        With None any label is valid, and composed already.
        """
        if labels is None:
            return [*images]
        labelled = []
        for position, image in enumerate(images, before):
            label, field = image.label, f"images[{position}].label"
            if labels:
                label = compose_label(label, limits=self._limits, field=field)
            elif label:
                raise InvalidInput("only images of AddClasses have a label", field=field)
            if labels and label not in labels:
                raise InvalidInput(f"label {label!r} is not one of config.labels", field=field)
            labelled.append(replace(image, label=label))
        return labelled

    async def _store_all(
        self, images: Sequence[UploadedImage], before: int, spec: InputSpec
    ) -> list[Upload | SkippedUpload]:
        """Store images, after ``before`` earlier images; an image without a name gets its index."""
        # In parallel: the disk syncs several files in the time of one.
        return await asyncio.gather(
            *(
                self._store_one(image, image.name or f"images[{position}]", spec)
                for position, image in enumerate(images, before)
            )
        )

    async def _store_one(
        self, image: UploadedImage, name: str, spec: InputSpec
    ) -> Upload | SkippedUpload:
        kind = kind_of(spec)
        size, most = image.size, kind.most_bytes(self._limits)
        content = image.content
        if isinstance(content, SentEmbedding):
            assert isinstance(spec, EmbeddingSpec), "check_kind refuses other models"
            try:
                content = to_content(checked(content, spec))
            except ImageError as error:
                return SkippedUpload(
                    name=name, label=image.label, reason=error.reason, message=str(error)
                )
        elif isinstance(content, SentContent):
            content = content.data
        if size > most:
            text = f"the {kind.name} is {size} bytes; the limit is {most}"
            reason = f"{kind.name.upper()}_TOO_LARGE"
            return SkippedUpload(name=name, label=image.label, reason=reason, message=text)
        try:
            digest = await asyncio.to_thread(self._repository.put_image, content)
        except OSError as error:  # such as a full disk
            raise Unavailable(
                f"{name} cannot be stored: {error.strerror}", reason="STORAGE"
            ) from error
        return Upload(name=name, digest=digest, label=image.label, columns=image.columns)


def _stored_uploads(stored: list[Upload | SkippedUpload]) -> tuple[Upload, ...]:
    return tuple(image for image in stored if isinstance(image, Upload))


def _release(hold: AbstractContextManager[None]) -> bool | None:
    return hold.__exit__(None, None, None)


async def _next(
    items: AsyncIterator[UploadItem], timeout: float
) -> tuple[UploadItem | None, float]:
    """Return the next item, None after the last, and the seconds that it took.

    Raises DeadlinePassed if no item comes within ``timeout`` seconds.
    """
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(timeout):
            item = await anext(items, None)
    except TimeoutError:
        raise DeadlinePassed(
            f"the upload sent nothing for {timeout:.0f} s; it must send something every "
            f"{SILENCE_SECONDS:.0f} s, and {MIN_BYTES_PER_SECOND} bytes a second on average",
            reason="UPLOAD_SILENT",
        ) from None
    return item, asyncio.get_running_loop().time() - start
