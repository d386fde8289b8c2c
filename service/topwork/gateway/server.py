"""HTTP server: uvicorn on a socket that is already open."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn

from topwork.errors import Unavailable
from topwork.gateway.app import make_app
from topwork.gateway.backend import Backend
from topwork.gateway.connection import Connection
from topwork.gateway.settings import GatewaySettings
from topwork.gateway.tls import ReloadedContext
from topwork.wire.addresses import HostPort, check_free

BACKLOG = 1024
"""Raising it keeps more connections waiting while the gateway starts or is busy."""

KEEP_ALIVE_SECONDS = 75
"""Raising it keeps idle connections longer; proxies in front usually close theirs after 60 s."""

MOST_CONNECTIONS = 8192
"""Raising it allows more connections at a time; further ones get 503."""

HEADER_BYTES = 65_536
"""Raising it accepts longer headers."""


def listen(address: HostPort) -> socket.socket:
    """Return a socket that listens on an address. Raises Unavailable."""
    try:
        listener = socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if ":" in address.host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            check_free(address)
        raise Unavailable(f"cannot listen on {address}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


async def serve(settings: GatewaySettings, listener: socket.socket, stop: asyncio.Event) -> None:
    """Answer requests until ``stop`` is set, then those in flight within the grace period."""
    backend = Backend(settings.server, settings.credentials, settings.secret)
    backend.start()
    certificate = None if settings.tls is None else ReloadedContext(settings.tls)
    config = uvicorn.Config(
        make_app(settings, backend),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.grace_seconds),
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    config.load()
    if certificate is not None:
        config.ssl = certificate.context
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]), name="http")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    reloading = None if certificate is None else asyncio.create_task(certificate.watch())
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        backend.stopping.set()
        server.should_exit = True
        await serving
    finally:
        stopping.cancel()
        if reloading is not None:
            reloading.cancel()
        await backend.aclose()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield
