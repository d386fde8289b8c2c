"""Addresses that only this host can reach: the loopback's, and sockets of the file system."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

_SCHEME = re.compile(r"dns:(?:///)?|ipv[46]:")
"""What may stand before HOST:PORT in gRPC's names; a DNS server of one's own may say anything."""


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT, in any way that gRPC writes it, or unix:PATH is this host's own."""
    if is_socket(address):
        return True
    scheme = _SCHEME.match(address)
    return all(map(_is_own, address[scheme.end() if scheme else 0 :].split(",")))


def is_socket(address: str) -> bool:
    """Return whether an address is a Unix domain socket, and no HOST:PORT."""
    return address.startswith(("unix:", "unix-abstract:"))


def socket_path(address: str) -> str | None:
    """Return the path of unix:PATH, as gRPC reads it; None for any other address."""
    return unquote(address.removeprefix("unix:")) if address.startswith("unix:") else None


def _is_own(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
