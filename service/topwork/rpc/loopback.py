"""Which addresses nobody but this host can reach."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT, or unix:PATH, is this host's own."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
