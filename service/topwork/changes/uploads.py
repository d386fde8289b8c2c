"""Storage of uploaded images in the repository, within the limits of an upload."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from topwork.bundle.store import Repository
from topwork.changes.jobs import SkippedUpload, Upload
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.errors import Corrupt, DeadlinePassed, InvalidInput, Unavailable
from topwork.limits import ServerLimits

SILENCE_SECONDS = 60.0
"""How long an upload may let the server wait at a time."""

BYTES_A_SECOND = 256
"""Raise it to end slow uploads sooner: so fast on average must one be, but for a first minute."""

RENEW_SECONDS = 600.0
"""How often the images of an upload that goes on are made young: ``topwork gc`` must spare longer,
or the upload fails."""


class Quota(Protocol):
    """Bounds the bytes of an upload; see ``topwork.changes.quota``."""

    def check(self, total: int, coming: int, images: int) -> None:
        """Raise QuotaExceeded if ``total`` bytes, or ``coming`` in ``images``, are too many."""


class Uploads:
    """Receives uploads. What it returned is on the disk."""

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

    async def store(
        self, items: AsyncIterator[UploadItem], quota: Quota
    ) -> tuple[tuple[Upload, ...], tuple[SkippedUpload, ...], int]:
        """Return the images of ``items`` that are stored, and those too large to be stored.

        Last the bytes of all together. Raises InvalidInput, DeadlinePassed, what ``quota`` raises,
        and Unavailable if they cannot be stored.
        """
        stored: list[Upload | SkippedUpload] = []
        size = 0
        renewed = time.monotonic()
        patience = SILENCE_SECONDS
        while True:
            images, waited = await _next(items, patience)
            if images is None:
                break
            if isinstance(images, ChangeRequest):
                raise InvalidInput("only the first message may have a config", field="config")
            if time.monotonic() - renewed >= RENEW_SECONDS:
                renewed = time.monotonic()
                async with self.holding(_uploads(stored)):
                    pass
            coming = sum(len(image.content) for image in images)
            size += coming
            self._check_limits(len(stored) + len(images), size)
            await asyncio.to_thread(quota.check, size, coming, len(images))
            stored += await self._store_all(images, len(stored))
            patience = min(SILENCE_SECONDS, patience - waited + coming / BYTES_A_SECOND)
            del images  # while the next ones are on their way
        if not stored:
            raise InvalidInput("the upload has no image", field="images")
        refused = tuple(image for image in stored if isinstance(image, SkippedUpload))
        return _uploads(stored), refused, size

    @contextlib.asynccontextmanager
    async def holding(self, uploads: tuple[Upload, ...]) -> AsyncIterator[None]:
        """Keep images in the repository while the block runs; see ``Stored.holding``.

        Raises Unavailable if one was deleted since it was stored, or none can be kept now.
        """
        held = self._repository.holding({one.digest for one in uploads})
        entering = asyncio.ensure_future(asyncio.to_thread(held.__enter__))
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(lambda done: done.exception() is None and _leave(held))
            raise
        except Corrupt as error:
            raise Unavailable(
                f"{error}: it was deleted before the upload ended; upload again",
                reason="UPLOAD_EXPIRED",
            ) from error
        except OSError as error:
            raise Unavailable(
                f"images cannot be kept: {error.strerror}", reason="STORAGE"
            ) from error
        try:
            yield
        finally:
            held.__exit__(None, None, None)

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

    async def _store_all(
        self, images: Sequence[UploadedImage], before: int
    ) -> list[Upload | SkippedUpload]:
        """Store images, ``before`` of which others came; each one without a name gets one."""
        # Side by side: each waits for the disk, which syncs several at the price of one.
        return await asyncio.gather(
            *(
                self._store_one(image.name or f"images[{position}]", image.content)
                for position, image in enumerate(images, before)
            )
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


def _uploads(stored: list[Upload | SkippedUpload]) -> tuple[Upload, ...]:
    return tuple(image for image in stored if isinstance(image, Upload))


def _leave(held: AbstractContextManager[None]) -> bool | None:
    return held.__exit__(None, None, None)


async def _next(
    items: AsyncIterator[UploadItem], patience: float
) -> tuple[UploadItem | None, float]:
    """Return the next item, None after the last, and the seconds that it took to come.

    Raises DeadlinePassed if none comes within ``patience`` seconds.
    """
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(patience):
            item = await anext(items, None)
    except TimeoutError:
        raise DeadlinePassed(
            f"nothing came for {patience:.0f} s; an upload must send something every "
            f"{SILENCE_SECONDS:.0f} s, and {BYTES_A_SECOND} bytes a second on average",
            reason="UPLOAD_SILENT",
        ) from None
    return item, asyncio.get_running_loop().time() - start
