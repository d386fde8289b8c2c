"""Ports of a server: addresses, credentials, and the hosts that can reach them."""

from __future__ import annotations

import fcntl
import os
import socket

import grpc
import structlog

from topwork.config import ServeConfig
from topwork.errors import InvalidInput, Unavailable
from topwork.rpc.tls import Certificates
from topwork.wire.addresses import HostPort, check_free, parse
from topwork.wire.loopback import is_loopback, socket_path

log = structlog.get_logger(__name__)

_IN_USE = "another process listens there"

PROBE_SECONDS = 1.0
"""Raising it gives a process that listens on a socket's path longer to accept a connection."""


def certificates(config: ServeConfig) -> Certificates | None:
    """Return the certificates of the ports, or None for plaintext.

    Raises InvalidInput if they cannot be used, or if plaintext would leave this host without
    ``insecure``.
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


def metrics_address(config: ServeConfig) -> HostPort | None:
    """Return the address of the metrics port: the host of ``config.address``, or the loopback."""
    if config.metrics_port is None:
        return None
    served = parse(config.address)
    return HostPort(served.host if served else "127.0.0.1", config.metrics_port)


def check_ports(config: ServeConfig) -> None:
    """Raise Unavailable if a port cannot be opened: a quick check before models are loaded.

    Raises InvalidInput if an address is malformed, or two are the same.
    """
    given = (config.address, config.mtls_address, config.health_port, config.http_port)
    wanted = [*map(parse, filter(None, given)), metrics_address(config)]
    fixed = [address for address in wanted if address is not None and address.port]
    for address in fixed:
        if fixed.count(address) > 1:
            raise InvalidInput(f"two of the addresses are {address}", field="address")
        check_free(address)
    for path in filter(None, map(socket_path, given)):
        try:
            _refuse_served(path)
        except OSError as error:
            raise Unavailable(f"cannot listen on 'unix:{path}': {error}") from error


def open_ports(
    server: grpc.aio.Server, config: ServeConfig, certificates: Certificates | None
) -> int:
    """Open the ports of a server and return the port number of ``config.address``.

    Raises Unavailable.
    """
    if certificates is None:
        return open_port(server, config.address, None)
    if config.mtls_address:
        mutual = certificates.credentials(of_clients=True)
        log.info("mtls", port=open_port(server, config.mtls_address, mutual))
    required = certificates.has_client_ca and not config.mtls_address
    return open_port(server, config.address, certificates.credentials(of_clients=required))


def open_port(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    """Open HOST:PORT or unix:PATH and return its port number. Without credentials: plaintext.

    Raises Unavailable.
    """
    try:
        if (path := socket_path(address)) is not None:
            _claim(path)
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:  # the system's own message says more than gRPC's
        if (parsed := parse(address)) is not None:
            check_free(parsed)
        raise Unavailable(f"cannot listen on {address!r}: {error}") from error


def _claim(path: str) -> None:
    """Lock a socket's path for this process until it ends. Raises OSError if another has it.

    gRPC takes a path away from a process that listens there, and deletes whatever socket is there
    when its server stops (grpc/grpc issue 17122).
    """
    if not path:
        raise OSError("there is no path")
    # Never closed: gRPC deletes the socket later.
    lock = os.open(f"{path}.lock", os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(_IN_USE) from None
    _refuse_served(path)  # by a process that takes no such lock


def _refuse_served(path: str) -> None:
    """Raise OSError if a process listens on a socket's path, which outlives a crash."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:  # its backlog is full
            pass
    raise OSError(_IN_USE)
