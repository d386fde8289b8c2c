"""Body of one HTTP request, read with limits of size, time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from topwork.errors import InvalidInput, Overloaded
from topwork.gateway.errors import HttpError

QUIET_SECONDS = 30.0
"""Raising it gives clients longer to send a body, besides the time at LEAST_RATE."""

LEAST_RATE = 16_384
"""Lowering it accepts slower clients (bytes per second)."""

MOST_BUFFERED = 512 * 2**20
"""Raising it keeps more bytes of all requests in memory at a time."""

RETRY_SECONDS = 1.0


class Memory:
    """Counter of the bytes of all requests that are in memory."""

    def __init__(self, most: int = MOST_BUFFERED) -> None:
        self._free = most

    def take(self, size: int) -> None:
        """Count bytes until ``give``. Raises Overloaded."""
        if size > self._free:
            raise Overloaded(
                "the gateway has too many bytes of requests in memory",
                retry_after=RETRY_SECONDS,
                reason="TOO_MANY_BYTES",
            )
        self._free -= size

    def give(self, size: int) -> None:
        """Free bytes."""
        self._free += size


class ClientLeft(Exception):
    """The client closed the connection; nobody reads a response."""


class Inbox:
    """Body of one request, then the wait for the client's departure."""

    def __init__(self, request: Request, memory: Memory) -> None:
        self._receive = request.receive
        self._memory = memory
        self._held = 0
        self._ended = asyncio.Event()
        self._left = False
        self.length = _content_length(request)
        self.has_ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises HttpError for a slow client, ClientLeft."""
        loop = asyncio.get_running_loop()
        allowed = QUIET_SECONDS
        while not self.has_ended:
            began = loop.time()
            message = await self._next(allowed)
            chunk: bytes = message.get("body", b"")
            # Only time in which the client was awaited counts.
            allowed += len(chunk) / LEAST_RATE - (loop.time() - began)
            if not message.get("more_body", False):
                self._end()
            if chunk:
                yield chunk

    async def read(self, most: int) -> bytes:
        """Return the whole body. Raises HttpError if it is longer than ``most``, and as chunks."""
        if self.length is not None and self.length > most:
            raise too_large(self.length, most)
        body = bytearray()
        async for chunk in self.chunks():
            if len(body) + len(chunk) > most:
                raise too_large(len(body) + len(chunk), most)
            self.hold(len(chunk))
            body += chunk
        return bytes(body)

    def hold(self, size: int) -> None:
        """Count bytes that stay in memory until ``close``. Raises Overloaded."""
        self._memory.take(size)
        self._held += size

    def drop(self, size: int) -> None:
        """Free bytes before ``close``."""
        self._memory.give(size)
        self._held -= size

    def close(self) -> None:
        """Free the memory of the request."""
        self._memory.give(self._held)
        self._held = 0

    async def left(self) -> None:
        """Return when the client has left, after the body was read."""
        await self._ended.wait()
        while not self._left:
            self._left = (await self._receive())["type"] == "http.disconnect"

    async def _next(self, seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                message = dict(await self._receive())
        except TimeoutError:
            raise HttpError(
                408, "the body of the request arrives too slowly", reason="BODY_SLOW"
            ) from None
        if message["type"] == "http.disconnect":
            self._left = True
            self._end()
            raise ClientLeft
        return message

    def _end(self) -> None:
        self.has_ended = True
        self._ended.set()


def too_large(size: int, most: int) -> HttpError:
    """Return the error of a body that is too long."""
    return HttpError(
        413, f"the body has {size} bytes or more; the limit is {most}", reason="BODY_TOO_LARGE"
    )


def _content_length(request: Request) -> int | None:
    value = request.headers.get("content-length")
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal()):  # servers refuse it before
        raise InvalidInput(f"content-length is {value[:80]!r}", field="content-length")
    return int(value)
