"""Metadata with which a trusted gateway names the address of its caller."""

from __future__ import annotations

from pathlib import Path

from topwork.errors import InvalidInput

SECRET_KEY = "topwork-gateway-secret"  # noqa: S105  # the name of a header
PEER_KEY = "topwork-gateway-peer"

LEAST_KEY = 32
"""Least characters of the key that server and gateway share."""


def peer(host: str) -> str:
    """Return the peer of a host's calls, nearly as gRPC names peers: ``ipv4:10.0.0.7:http``.

    It has no port: an HTTP client needs a connection for each call that it makes at a time, and
    shall not get more turns in the queue for it.
    """
    return f"ipv6:%5B{host}%5D:http" if ":" in host else f"ipv4:{host}:http"


def read_key(path: Path | None) -> str:
    """Return the key in a file, empty without a file. Raises InvalidInput."""
    if path is None:
        return ""
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"gateway_key {str(path)!r} cannot be read: {error}", field="gateway_key"
        ) from error
    if len(key) < LEAST_KEY or not key.isprintable():
        raise InvalidInput(
            f"gateway_key {str(path)!r} has {len(key)} characters; it must be one line of at "
            f"least {LEAST_KEY} printable ones",
            field="gateway_key",
        )
    return key
