"""HTTP/1.1 connection: uvicorn's on h11, which is strict, with a time limit for headers."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
"""Raising it gives clients longer to send the headers of a request, and for TLS before it."""


class Connection(H11Protocol):
    """One connection. It closes if a request that has begun does not get to the end of its headers.

    uvicorn limits only the idle time between requests.
    """

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's
        """See asyncio."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel()
        elif self._limit is None:  # a part of the next request
            self._limit = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._cancel()
        super().connection_lost(exc)

    def _cancel(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
