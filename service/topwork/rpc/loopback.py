"""Addresses that only this host can reach: the loopback's, and sockets of the file system."""

from __future__ import annotations

import ipaddress
import re

_SCHEME = re.compile(r"dns:(?:///)?|ipv[46]:")
"""What may stand before HOST:PORT in gRPC's names; a DNS server of one's own may say anything."""


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT, in any way that gRPC writes it, or unix:PATH is this host's own."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    scheme = _SCHEME.match(address)
    return all(map(_is_own, address[scheme.end() if scheme else 0 :].split(",")))


def _is_own(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
