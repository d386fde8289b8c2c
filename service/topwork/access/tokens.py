"""Bearer tokens: generation, and verification against stored SHA-256 digests.

A token is ``topwork_<id>_<secret>``; the secret is 256 bits from the system's random generator.
The access file stores the id and the token's plain SHA-256. Slow, salted hashes protect passwords,
which can be guessed; 256 random bits cannot, and a fast hash costs each call a microsecond.
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
_UNKNOWN_DIGEST = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A generated token and its entry in the access file."""

    token: str = field(repr=False)
    """The secret for the caller."""
    entry: str
    """For the access file; nobody can derive the token from it."""


def make() -> NewToken:
    """Return a new token."""
    identifier = secrets.token_hex(6)
    token = f"topwork_{identifier}_{secrets.token_urlsafe(32)}"
    return NewToken(token=token, entry=f"{identifier}:{_digest(token).hex()}")


def parse(entry: str) -> tuple[str, bytes]:
    """Return id and digest of an entry. Raises ValueError, without the entry in its text."""
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError("a token's entry is <12 hex digits>:<64 hex digits>, see `topwork token`")
    return match[1], bytes.fromhex(match[2])


class TokenTable(Generic[T]):
    """Digests and owners of tokens, by id."""

    def __init__(self, owners: Mapping[str, tuple[bytes, T]]) -> None:
        self._owners = owners

    def owner(self, token: str) -> T | None:
        """Return the owner of a token, None if the token is unknown.

        Digests are compared in constant time, and an unknown id takes as long as a known id.
        """
        _, _, rest = token.partition("_")
        digest, owner = self._owners.get(rest.partition("_")[0], (_UNKNOWN_DIGEST, None))
        return owner if hmac.compare_digest(_digest(token), digest) else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
