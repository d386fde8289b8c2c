"""How the images of an upload get into the repository."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from topwork.access.slots import Slots
from topwork.bundle.store import Repository
from topwork.changes.jobs import SkippedUpload, Upload
from topwork.errors import Corrupt, DeadlinePassed, InvalidInput, Unavailable
from topwork.limits import Limits
from topwork.v1 import change_pb2 as change_pb

SILENCE_SECONDS = 60.0
"""How long an upload may let the server wait at a time."""

BYTES_A_SECOND = 256
"""Raise it to end slow uploads sooner: so fast on average must one be, but for a first minute."""

RETRY_SECONDS = 5.0
"""After which a client that found too many uploads may try again."""

RENEW_SECONDS = 600.0
"""How often the images of an upload that goes on are made young: ``topwork gc`` must spare longer,
or the upload fails."""

Part: TypeAlias = change_pb.AddClassRequest | change_pb.AddExamplesRequest


class Room(Protocol):
    """Says whether there is room for an upload; see ``topwork.changes.room``."""

    def check(self, total: int, coming: int, images: int) -> None:
        """Raise QuotaExceeded if ``total`` bytes, or ``coming`` in ``images``, are too many."""


class Uploads:
    """Receives uploads. What it returned is on the disk."""

    def __init__(self, repository: Repository, limits: Limits) -> None:
        self._repository = repository
        self._limits = limits
        self.slots = Slots(
            limits.max_uploads,
            calls="uploads",
            reason="TOO_MANY_UPLOADS",
            retry_after=RETRY_SECONDS,
        )
        """Of the uploads that go on."""

    async def first(self, parts: AsyncIterator[Part]) -> Part:
        """Return the first message. Raises InvalidInput if there is none, DeadlinePassed."""
        message, _ = await _next(parts, SILENCE_SECONDS)
        if message is None:
            raise InvalidInput("the upload has no message", field="config")
        return message

    async def store(
        self, message: Part, parts: AsyncIterator[Part], room: Room
    ) -> tuple[tuple[Upload, ...], tuple[SkippedUpload, ...], int]:
        """Return the images of ``message`` and all after it, and those too large to be stored.

        Last the bytes of all together. Raises InvalidInput, DeadlinePassed, what ``room`` raises,
        and Unavailable if they cannot be stored.
        """
        stored: list[Upload | SkippedUpload] = []
        size = 0
        renewed = time.monotonic()
        patience = SILENCE_SECONDS
        while True:
            most = self._limits.max_images_per_upload
            if len(stored) + len(message.images) > most:
                raise InvalidInput(
                    f"the upload has more than {most} images, which is the limit",
                    field="images",
                    reason="TOO_MANY_IMAGES",
                )
            coming = sum(len(image.content) for image in message.images)
            size += coming
            if size > self._limits.max_upload_bytes:
                raise InvalidInput(
                    f"the upload has more than {self._limits.max_upload_bytes} bytes of images, "
                    "which is the limit",
                    field="images",
                    reason="UPLOAD_TOO_LARGE",
                )
            await asyncio.to_thread(room.check, size, coming, len(message.images))
            # Side by side: each waits for the disk, which syncs several at the price of one.
            stored += await asyncio.gather(
                *(
                    self._store_one(
                        image.display_name[: self._limits.max_display_name_length]
                        or f"images[{position}]",
                        image.content,
                    )
                    for position, image in enumerate(message.images, len(stored))
                )
            )
            patience = min(SILENCE_SECONDS, patience + coming / BYTES_A_SECOND)
            following, waited = await _next(parts, patience)
            patience -= waited
            if following is None:
                break
            if time.monotonic() - renewed >= RENEW_SECONDS:
                renewed = time.monotonic()
                async with self.holding(_uploads(stored)):
                    pass
            message = following
            if message.HasField("config"):
                raise InvalidInput("only the first message may have a config", field="config")
        if not stored:
            raise InvalidInput("the upload has no image", field="images")
        return (
            _uploads(stored),
            tuple(one for one in stored if isinstance(one, SkippedUpload)),
            size,
        )

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
    return tuple(one for one in stored if isinstance(one, Upload))


def _leave(held: AbstractContextManager[None]) -> bool | None:
    return held.__exit__(None, None, None)


async def _next(parts: AsyncIterator[Part], patience: float) -> tuple[Part | None, float]:
    """Return the next message, None after the last, and the seconds that it took to come.

    Raises DeadlinePassed if none comes within ``patience`` seconds.
    """
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(patience):
            message = await anext(parts, None)
    except TimeoutError:
        raise DeadlinePassed(
            f"nothing came for {patience:.0f} s; an upload must send something every "
            f"{SILENCE_SECONDS:.0f} s, and {BYTES_A_SECOND} bytes a second on average",
            reason="UPLOAD_SILENT",
        ) from None
    return message, asyncio.get_running_loop().time() - start
