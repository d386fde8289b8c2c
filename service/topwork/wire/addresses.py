"""Server addresses (HOST:PORT, [IPv6]:PORT, unix:PATH): parser, and checks with a socket."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from topwork.errors import InvalidInput, Unavailable

CONNECT_SECONDS = 1.0
"""Raising it waits longer for a TCP connection, to say why gRPC reached no server."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """A TCP address."""

    host: str
    """A name or an IP address, without brackets."""
    port: int

    def __str__(self) -> str:
        """Return the address as ``parse`` reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(address: str) -> HostPort | None:
    """Return the host and port of an address, None for unix:PATH. Raises InvalidInput."""
    if address.startswith("unix:"):
        if not address.removeprefix("unix:").strip("/"):
            raise _invalid(address, "has no path: write unix:PATH")
        return None
    if "://" in address:
        raise _invalid(address, "is a URL: write HOST:PORT")
    if _is_ipv6(address):  # ambiguous: its last part may be meant as the port
        raise _invalid(address, f"is an IPv6 address without a port: write [{address}]:PORT")
    host, colon, port = address.rpartition(":")
    if not colon or (address.startswith("[") and not host.endswith("]")):
        if address.isdecimal():
            raise _invalid(address, f"has no host: write HOST:PORT, such as 127.0.0.1:{address}")
        raise _invalid(address, f"has no port: write HOST:PORT, such as {address}:50051")
    if not host:
        raise _invalid(address, f"has no host: write HOST:PORT, such as 127.0.0.1:{port}")
    if not (port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise _invalid(address, f"has the port {port!r}, which is not a number from 0 to 65535")
    bare = host.strip("[]")
    if not (host == f"[{bare}]" if _is_ipv6(bare) else host == bare and ":" not in bare):
        raise _invalid(
            address, "is not HOST:PORT: put an IPv6 address, and nothing else, in brackets"
        )
    try:
        bare.encode("idna")  # as Python's sockets do
    except UnicodeError as error:
        raise _invalid(address, f"has the host {bare!r}, which is not a host name") from error
    return HostPort(bare, int(port))


def check_free(address: HostPort) -> None:
    """Raise Unavailable, with the reason, if a server cannot listen on ``address`` now.

    Nothing is reserved: another process may still take the port first. Connections in TIME_WAIT do
    not count, because gRPC, too, sets SO_REUSEADDR.
    """
    failures: list[OSError] = []
    try:
        addresses = socket.getaddrinfo(
            None if address.host == "*" else address.host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {error.strerror}") from error
    for family, kind, protocol, _, where in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
        except OSError as error:
            failures.append(error)
    if errno.EADDRINUSE in {failure.errno for failure in failures}:
        raise Unavailable(
            f"port {address.port} of {address.host} is in use: another process listens there"
        )
    if len(failures) == len(addresses):  # some fail on a host without IPv6
        raise Unavailable(f"cannot listen on {address}: {failures[0].strerror}") from failures[0]


def why_unreachable(address: str, *, tls: bool) -> str:
    """Return the likely reason why gRPC reached no server; empty if unknown. gRPC gives none."""
    try:
        parsed = parse(address)
        if parsed is None:
            return ""
        socket.create_connection((parsed.host, parsed.port), CONNECT_SECONDS).close()
    except InvalidInput:  # a name that only gRPC resolves
        return ""
    except ConnectionRefusedError:
        return "nothing listens there; a server listens only once its models are loaded"
    except OSError as error:
        return error.strerror or "no connection"
    expected = "with TLS that this client trusts" if tls else "in plaintext: does it want TLS?"
    return f"something listens there, but it does not speak gRPC {expected}"


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _invalid(address: str, why: str) -> InvalidInput:
    return InvalidInput(f"{address!r} {why}", field="address")
