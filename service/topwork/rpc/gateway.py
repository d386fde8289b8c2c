"""The gateway process beside a server: its port, and the socket by which it calls the server."""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from topwork.config import ServeConfig
from topwork.errors import NotReady
from topwork.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from topwork.gateway.settings import GatewaySettings

log = structlog.get_logger(__name__)


class Gateway:
    """Starts the process, and stops it before the server stops.

    This process opens the port and keeps it, so that connections wait while the gateway starts
    again. The gateway calls the server by a Unix domain socket in a private directory, whatever
    certificates and addresses the server has.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self.secret = secrets.token_hex() if config.http_port else ""
        self._listener: socket.socket | None = None
        self._directory: Path | None = None
        self._process: Supervisor[socket.socket, GatewaySettings] | None = None

    @property
    def server_address(self) -> str:
        """The address that the server opens for the gateway; empty without a gateway."""
        return "" if self._directory is None else f"unix:{self._directory}/server"

    def open(self) -> None:
        """Open the port. Raises InvalidInput, Unavailable, NotReady if the extra is missing."""
        if not self._config.http_port:
            return
        try:
            from topwork.gateway import process, server, settings
        except ModuleNotFoundError as error:
            raise NotReady("--http-port needs the extra: topwork[http]") from error
        self._listener = server.listen(settings.http_address(self._config))
        self._directory = Path(tempfile.mkdtemp(prefix="topwork-"))
        made = settings.GatewaySettings.beside(self._config, self.server_address, self.secret)
        self._process = Supervisor("topwork-gateway", process.run, self._listener, made)
        self._process.closing_seconds = self._config.grace_seconds + 1.0

    def start(self) -> None:
        """Start the process."""
        if self._process is not None and self._listener is not None:
            self._process.start()
            log.info("http", port=self._listener.getsockname()[1])

    async def aclose(self) -> None:
        """Close the port, and wait for requests in flight within the grace period."""
        if self._listener is not None:
            self._listener.close()
        if self._process is not None:
            await self._process.aclose()

    def remove(self) -> None:
        """Remove the socket's directory, when the server has stopped."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
