"""Addresses that only this host can reach: loopback addresses and Unix domain sockets."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

_SCHEME = re.compile(r"dns:(?:///)?|ipv[46]:")
"""gRPC's schemes before HOST:PORT, without ``dns://SERVER/``, whose names may be any host."""


def is_loopback(address: str) -> bool:
    """Return True if ``address``, in any form that gRPC takes, is reached from this host alone."""
    if is_socket(address):
        return True
    scheme = _SCHEME.match(address)
    return all(map(_is_loopback_host, address[scheme.end() if scheme else 0 :].split(",")))


def is_socket(address: str) -> bool:
    """Return True if ``address`` is a Unix domain socket."""
    return address.startswith(("unix:", "unix-abstract:"))


def socket_path(address: str) -> str | None:
    """Return the path of unix:PATH, decoded as gRPC does; None for any other address."""
    return unquote(address.removeprefix("unix:")) if address.startswith("unix:") else None


def _is_loopback_host(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
