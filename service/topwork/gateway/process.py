"""Gateway process: beside a server, which starts and ends it, or alone."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any

import structlog
import uvloop

from topwork.config import GatewayConfig
from topwork.gateway import server
from topwork.gateway.settings import GatewaySettings, http_address
from topwork.runtime import logs, process

log = structlog.get_logger(__name__)


def run(parent: Connection, listener: socket.socket, settings: GatewaySettings) -> None:
    """Answer requests on ``listener`` until the parent dies or closes its end of the pipe."""
    process.configure()
    logs.configure(settings.log_format)

    async def until_closed() -> None:
        stop = asyncio.Event()
        # Nothing is ever received: the pipe is readable when it is closed.
        asyncio.get_running_loop().add_reader(parent.fileno(), stop.set)
        parent.send(True)
        await server.serve(settings, listener, stop)

    _run(until_closed())


def run_alone(config: GatewayConfig) -> None:
    """Answer requests until SIGTERM or SIGINT. Raises InvalidInput, Unavailable."""
    settings = GatewaySettings.alone(config)
    listener = server.listen(http_address(config))

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        log.info("ready", port=listener.getsockname()[1], server=config.server)
        await server.serve(settings, listener, stop)

    _run(until_signal())
    logs.exit_process(0)


def _run(serving: Coroutine[Any, Any, None]) -> None:
    gc.freeze()  # modules stay: the collections while it answers need not look at them
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)
