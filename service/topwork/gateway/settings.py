"""Settings of a gateway process, made from those of ``topwork serve`` or ``topwork gateway``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from topwork.client.credentials import ANONYMOUS, Credentials
from topwork.config import GatewayConfig, ServeConfig, TlsFiles
from topwork.errors import InvalidInput
from topwork.runtime.relay import Format
from topwork.wire.addresses import HostPort, parse
from topwork.wire.forwarding import read_key
from topwork.wire.loopback import is_loopback

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Host names of the loopback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What a gateway needs; pickled for its process."""

    server: str
    """Address of the gRPC server."""
    credentials: Credentials
    """Of the connection to the server, without a token: each caller sends its own."""
    secret: str
    """Makes the server believe callers' addresses; empty: it counts the gateway as one caller."""
    hosts: tuple[str, ...] | None
    """Host names of the port, in lower case; None: any."""
    origins: tuple[str, ...]
    """Origins whose pages may call the API."""
    console: bool
    """True: ``/`` is the console."""
    tls: TlsFiles | None
    grace_seconds: float
    log_format: Format

    @classmethod
    def beside(cls, config: ServeConfig, address: str, secret: str) -> GatewaySettings:
        """Return the settings of a gateway that a server starts."""
        tls = config.tls
        if tls is not None and config.mtls_address:  # the main ports accept clients without one
            tls = replace(tls, client_ca=None)
        return cls(
            server=address,
            credentials=ANONYMOUS,
            secret=secret,
            hosts=_hosts(config),
            origins=_split(config.http_cors_origins),
            console=config.http_console,
            tls=tls,
            grace_seconds=config.grace_seconds,
            log_format=config.log_format,
        )

    @classmethod
    def alone(cls, config: GatewayConfig) -> GatewaySettings:
        """Return the settings of ``topwork gateway``. Raises InvalidInput."""
        return cls(
            server=config.server,
            credentials=Credentials.from_files(
                tls=config.server_tls,
                tls_ca=config.server_ca,
                client_cert=config.server_cert,
                client_key=config.server_key,
            ),
            secret=read_key(config.gateway_key),
            hosts=_hosts(config),
            origins=_split(config.http_cors_origins),
            console=config.http_console,
            tls=config.tls,
            grace_seconds=config.grace_seconds,
            log_format=config.log_format,
        )


def http_address(config: ServeConfig | GatewayConfig) -> HostPort:
    """Return the address of the HTTP port.

    Raises InvalidInput for a Unix domain socket, or if plaintext would leave this host without
    ``insecure``.
    """
    address = parse(config.http_port)
    if address is None:
        raise InvalidInput(
            f"http_port is {config.http_port!r}; it must be PORT or HOST:PORT", field="http_port"
        )
    if config.tls is None and not (config.insecure or is_loopback(config.http_port)):
        raise InvalidInput(
            f"{config.http_port} can be reached from other hosts: give it a certificate "
            "(--tls-cert, --tls-key), or allow plaintext (--insecure)",
            field="http_port",
            reason="PLAINTEXT",
        )
    return address


def _hosts(config: ServeConfig | GatewayConfig) -> tuple[str, ...] | None:
    given = _split(config.http_hosts.lower())
    if not is_loopback(config.http_port):
        return given or None
    return (*LOCAL_NAMES, *given)


def _split(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))
