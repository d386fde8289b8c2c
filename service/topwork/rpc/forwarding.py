"""Addresses of callers, as a trusted gateway forwards them."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from topwork.wire.forwarding import PEER_KEY, SECRET_KEY


class Forwarding:
    """Finds the caller behind a gateway that knows one of ``secrets``."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = [secret.encode() for secret in secrets if secret]

    def peer(self, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> str:
        """Return the peer of a call that came from ``peer``."""
        if not self._secrets:
            return peer
        found = {key: value for key, value in metadata if key in {SECRET_KEY, PEER_KEY}}
        secret = str(found.get(SECRET_KEY, "")).encode()
        if not any(hmac.compare_digest(secret, known) for known in self._secrets):
            return peer
        return str(found.get(PEER_KEY, peer))
