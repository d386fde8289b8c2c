"""The status that the server gave a call of grpc.aio, which grpc.aio itself may lose.

When a server ends a call while a message is on its way to it, grpc.aio puts an INTERNAL of its own
beside the server's status; the last of the two wins (https://github.com/grpc/grpc/issues/36066).
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

OWN_DETAILS = "Internal error from Core"
"""Details of the status that grpc.aio makes when a message can't be sent."""

WAIT_SECONDS = 1.0
"""Raising it waits longer for the server's status after grpc.aio's own; gRPC may have none."""


class ServerStatus:
    """Status of one call that sends a stream."""

    def __init__(self, call: Any) -> None:
        """Observe ``call``, a call of grpc.aio that has just begun."""
        self._found: grpc.aio.AioRpcError | None = None
        self._arrived = asyncio.Event()
        call.add_done_callback(self._note)

    async def of(self, error: grpc.RpcError) -> grpc.RpcError:
        """Return the error with the server's status, if ``error`` of the call has grpc.aio's."""
        if isinstance(error, grpc.aio.AioRpcError) and _is_own(error):
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                return error
            return self._found or error
        return error

    def _note(self, call: Any) -> None:
        """Keep the status of a call that is done; grpc.aio calls this for each of two."""
        reading = _read(call)
        try:
            reading.send(None)  # nothing is waited for when a call is done
        except StopIteration as done:
            if not _is_own(done.value):
                self._found = done.value
                self._arrived.set()
        finally:
            reading.close()


async def _read(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        await call.details(),
    )


def _is_own(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == OWN_DETAILS
