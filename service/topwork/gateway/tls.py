"""The gateway's certificate, read again when its files are replaced."""

from __future__ import annotations

import asyncio
import ssl

import structlog

from topwork.config import TlsFiles
from topwork.errors import InvalidInput

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
"""Raising it makes a new certificate take effect later."""


class ReloadedContext:
    """A TLS context whose certificate follows its files; new connections get the new one."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises InvalidInput if they cannot be used."""
        self._files = files
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamp = self._stamp_of_files()
        self._load()
        if files.client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(files.client_ca)

    async def watch(self) -> None:
        """Look at the files for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if (stamp := self._stamp_of_files()) != self._stamp:
                    self._stamp = stamp
                    self._load()
                    log.info("certificates", cert=str(self._files.cert))
            except (InvalidInput, OSError) as error:
                log.error("certificates stay as they were", error=str(error))

    def _load(self) -> None:
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            for context in (check, self.context):  # a pair that does not match changes nothing
                context.load_cert_chain(self._files.cert, self._files.key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InvalidInput(
                f"tls_cert {str(self._files.cert)!r} cannot be used with its key: {error}",
                field="tls_cert",
            ) from error

    def _stamp_of_files(self) -> tuple[tuple[int, int], ...]:
        stats = [path.stat() for path in (self._files.cert, self._files.key)]
        return tuple((found.st_mtime_ns, found.st_ino) for found in stats)
