"""The server's certificate, from files that may be replaced while it serves."""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path

import grpc
import structlog

from topwork.config import TlsFiles
from topwork.errors import InvalidInput

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 0.05
"""Raising it gives handshakes longer to copy the certificate; they need microseconds."""

Stamp = tuple[tuple[int, int, int], ...]
"""Modification time, inode and length of each file."""


class Certificates:
    """Hot reload of certificates: each TLS handshake gets the files of that moment.

    Files that do not match, such as a certificate whose key has not been replaced yet, are logged,
    and the previous ones stay in use. Called by gRPC's threads.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises InvalidInput if they cannot be used."""
        self._files = files
        self._lock = threading.Lock()
        self._stamp = self._stamp_of_files()
        self._current = self._read()

    @property
    def has_client_ca(self) -> bool:
        """True if there is a certificate authority for client certificates."""
        return self._files.client_ca is not None

    def credentials(self, *, of_clients: bool) -> grpc.ServerCredentials:
        """Return the credentials of a port; ``of_clients``: clients need a certificate (mTLS).

        gRPC for Python has no optional client certificates: a port requires or ignores them.
        """
        given = self._current

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if (current := self._fetch()) is given:
                return None  # gRPC keeps what it has
            # gRPC frees the old configuration though another handshake may be about to use it
            # (grpc/grpc issue 36693: a crash a minute when each connection did this). gRPC holds a
            # lock meanwhile, so no handshake begins, and those in progress end.
            time.sleep(SETTLE_SECONDS)
            given = current
            return current

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            given,
            fetch,  # type: ignore[arg-type]  # None is what the documentation asks for
            require_client_authentication=of_clients,
        )
        return credentials

    def _fetch(self) -> grpc.ServerCertificateConfiguration:
        with self._lock:
            try:
                stamp = self._stamp_of_files()
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._current = self._read()
                    log.info("certificates", cert=str(self._files.cert))
            except InvalidInput as error:
                log.error("certificates stay as they were", error=str(error))
            return self._current

    def _paths(self) -> list[tuple[str, Path]]:
        given = [("tls_cert", self._files.cert), ("tls_key", self._files.key)]
        if self._files.client_ca is not None:
            given.append(("client_ca", self._files.client_ca))
        return given

    def _stamp_of_files(self) -> Stamp:
        """Return the stamp of the files. Raises InvalidInput."""
        stamps = []
        for field, path in self._paths():
            try:
                found = path.stat()
            except OSError as error:
                raise _unusable(field, path, error.strerror) from error
            stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return tuple(stamps)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Return the content of the files. Raises InvalidInput if they do not match."""
        contents = {}
        for field, path in self._paths():
            try:
                contents[field] = path.read_bytes()
            except OSError as error:
                raise _unusable(field, path, error.strerror) from error
        self._check()
        return grpc.ssl_server_certificate_configuration(
            [(contents["tls_key"], contents["tls_cert"])], contents.get("client_ca")
        )

    def _check(self) -> None:
        """Raise InvalidInput unless OpenSSL can use the files together: gRPC does not say why."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self._files.cert, self._files.key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise _unusable("tls_cert", self._files.cert, f"with its key: {error}") from error
        if self._files.client_ca is not None:
            try:
                context.load_verify_locations(self._files.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise _unusable("client_ca", self._files.client_ca, str(error)) from error


def _unusable(field: str, path: Path, why: str | None) -> InvalidInput:
    return InvalidInput(f"{field} {str(path)!r} cannot be used: {why}", field=field)
