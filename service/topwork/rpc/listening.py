"""Who can reach a server, and how: which ports are opened with which credentials."""

from __future__ import annotations

import fcntl
import os
import socket

import grpc
import structlog

from topwork.config import ServeConfig
from topwork.errors import InvalidInput, Unavailable
from topwork.rpc.loopback import is_loopback, socket_path
from topwork.rpc.tls import Certificates

log = structlog.get_logger(__name__)

PROBE_SECONDS = 1.0
"""Raising it gives a process that listens on a socket's path longer to take a connection."""


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
    """Open HOST:PORT or unix:PATH and return its number; no credentials: plaintext.

    Raises Unavailable.
    """
    try:
        if (path := socket_path(address)) is not None:
            _claim(path)
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"cannot listen on {address!r}: {error}") from error


def _claim(path: str) -> None:
    """Make a socket's path this process's own until it ends. Raises OSError if another has it.

    gRPC takes a path from whoever listens there, and when a server stops deletes whatever socket is
    there by then (grpc/grpc issue 17122).
    """
    if not path:
        raise OSError("there is no path")
    # Never closed: gRPC deletes the socket at a moment of its own.
    lock = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket(socket.AF_UNIX) as probe:  # of one that takes no such lock
            probe.settimeout(PROBE_SECONDS)
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return  # nobody listens, as after a crash
    except BlockingIOError:
        pass
    raise OSError("another process listens there")
