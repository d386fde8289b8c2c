"""Responses that are streams of messages: Server-Sent Events, or JSON lines (NDJSON)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from grpc.aio import EOF
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from topwork.errors import TopworkError
from topwork.gateway.backend import Rpc, Sending, result_of
from topwork.gateway.errors import HTTP_CODES, body, status_of
from topwork.gateway.inbox import ClientLeft, Inbox
from topwork.gateway.json_mapping import to_json

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

HEARTBEAT_SECONDS = 15.0
"""Raising it sends fewer comments to keep the connection of a silent stream open."""

END = "end"
"""Type and id of the last event. A client that reconnects with this id gets 204, and stops."""


class StreamedResponse(Response):
    """Response that sends each message of a call as it arrives."""

    def __init__(
        self,
        call: Rpc,
        first: Any,
        inbox: Inbox,
        sending: Sending | None,
        kind: str,
        stopping: asyncio.Event,
    ) -> None:
        """Take the call's ``first`` message, or EOF. Events end when ``stopping`` is set."""
        # A proxy such as nginx must not buffer events.
        super().__init__(media_type=kind, headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._call = call
        self._next = first
        self._inbox = inbox
        self._sending = sending
        self._stopping = stopping
        self._frame = _event if kind == EVENTS else _line
        self._is_events = kind == EVENTS

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """See Starlette."""
        gone = asyncio.create_task(self._inbox.left(), name="left")
        stop = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for frame in self._frames(gone, stop):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            stop.cancel()
            self._call.cancel()
            self._inbox.close()

    async def _frames(
        self, gone: asyncio.Future[None], stop: asyncio.Future[Literal[True]]
    ) -> AsyncIterator[bytes]:
        number = 0
        try:
            while self._next is not EOF:
                number += 1
                yield self._frame(number, to_json(self._next))
                read = asyncio.ensure_future(self._call.read())
                try:
                    while not read.done():
                        await asyncio.wait(
                            (read, gone, stop) if self._is_events else (read, gone),
                            timeout=HEARTBEAT_SECONDS if self._is_events else None,
                            return_when=asyncio.FIRST_COMPLETED,
                        )
                        if gone.done():
                            raise ClientLeft
                        if stop.done() and self._is_events:
                            return  # without the last event: the client reconnects
                        if not read.done():
                            yield b": still there\n\n"
                    self._next = await result_of(read, self._sending)
                finally:
                    read.cancel()
        except TopworkError as error:
            status = status_of(error)
            text = body(status, HTTP_CODES.get(status.code, 500))
            yield b"event: failure\ndata: %b\n\n" % text if self._is_events else text + b"\n"
        else:
            if self._is_events:
                yield b"event: %b\nid: %b\ndata: {}\n\n" % (END.encode(), END.encode())


def _event(number: int, message: bytes) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (number, message)


def _line(_: int, message: bytes) -> bytes:
    return message + b"\n"
