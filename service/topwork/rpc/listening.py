"""Who can reach a server, and how: which ports are opened with which credentials."""

from __future__ import annotations

import grpc
import structlog

from topwork.config import ServeConfig
from topwork.errors import InvalidInput, Unavailable
from topwork.rpc.loopback import is_loopback
from topwork.rpc.tls import Certificates

log = structlog.get_logger(__name__)


def certificates(config: ServeConfig) -> Certificates | None:
    """Return the certificates of the ports; None: plaintext.

    Raises InvalidInput if they cannot be used, or if plaintext would leave this host unasked.
    """
    tls = config.tls
    if config.mtls_address and (tls is None or tls.client_ca is None):
        raise InvalidInput("mtls_address needs tls_cert and client_ca", field="mtls_address")
    if tls is not None:
        return Certificates(tls)
    if not (config.insecure or is_loopback(config.address)):
        raise InvalidInput(
            f"{config.address} can be reached from other hosts: give it a certificate (--tls-cert, "
            "--tls-key), or allow plaintext (--insecure)",
            field="address",
            reason="PLAINTEXT",
        )
    return None


def open_ports(
    server: grpc.aio.Server, config: ServeConfig, certificates: Certificates | None
) -> int:
    """Open the ports of a server and return the number of the one of ``config.address``.

    Raises Unavailable.
    """
    if certificates is None:
        return open_port(server, config.address, None)
    if config.mtls_address:
        asking = certificates.credentials(of_clients=True)
        log.info("mtls", port=open_port(server, config.mtls_address, asking))
    asks = certificates.know_clients and not config.mtls_address
    return open_port(server, config.address, certificates.credentials(of_clients=asks))


def open_port(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    """Open HOST:PORT and return its number; no credentials: plaintext. Raises Unavailable."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address!r}: {error}") from error
