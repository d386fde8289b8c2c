"""Bearer tokens: how one is made, and how one is known again without being kept.

A token is ``topwork_<id>_<secret>``. The id says where to look, the secret is 256 bits from the
system's generator. What is kept of it is the id and the token's plain SHA-256: slow, salted hashes
are for passwords, which people choose and others can guess; nobody guesses 256 bits, and a fast
hash costs each call a microsecond.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_ENTRY = re.compile(r"([0-9a-f]{12}):([0-9a-f]{64})")
_NOBODYS = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token that was just made."""

    token: str = field(repr=False)
    """For its bearer alone."""
    entry: str
    """For the access file: of no use to who reads it."""


def make() -> NewToken:
    """Return a new token."""
    identifier = secrets.token_hex(6)
    token = f"topwork_{identifier}_{secrets.token_urlsafe(32)}"
    return NewToken(token=token, entry=f"{identifier}:{_digest(token).hex()}")


def parse(entry: str) -> tuple[str, bytes]:
    """Return id and digest of an entry. Raises ValueError, without what is wrong in its text."""
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError("a token is kept as <12 hex digits>:<64 hex digits>, see `topwork token`")
    return match[1], bytes.fromhex(match[2])


class KnownToken(Generic[T]):
    """Tokens and whose they are, by id."""

    def __init__(self, owners: Mapping[str, tuple[bytes, T]]) -> None:
        self._owners = owners

    def owner(self, token: str) -> T | None:
        """Return whose token it is, None if nobody's.

        Digests are compared in constant time, and an unknown id takes as long as a known one.
        """
        _, _, rest = token.partition("_")
        digest, owner = self._owners.get(rest.partition("_")[0], (_NOBODYS, None))
        return owner if hmac.compare_digest(_digest(token), digest) else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
