"""Authentication with the access file, a TOML file of principals; hot reload twice a second.

docs/security.md has an example.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
import structlog

from topwork.access import tokens
from topwork.access.principals import ROLES, Caller, Principal, Role, Scope, unrestricted
from topwork.access.rate_limits import CallLimits, RateLimiter
from topwork.bundle.documents import document, from_toml
from topwork.errors import InvalidInput, Unauthenticated

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
"""Raising it makes a change of the file take effect later."""

AuthContext: TypeAlias = Mapping[str, Iterable[bytes]]
"""The verified identity of a connection's peer, as gRPC returns it."""

_AUTH_KEYS = {
    "URI": "peer_uri",
    "DNS": "peer_dns",
    "EMAIL": "peer_email",
    "SUBJECT": "x509_subject",
    "CN": "x509_common_name",
}
"""Parts of a certificate: the file's prefix to gRPC's key. The first known part decides."""

_MODEL_PATTERN = re.compile(r"[a-z0-9._-]{0,63}\*?")


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: list[str] = []
    certificates: list[str] = []
    classify: list[str] = []
    train: list[str] = []
    admin: list[str] = []
    limits: CallLimits | None = None


@document
class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    principals: dict[str, _Entry] = {}
    limits: CallLimits = CallLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The parsed content of an access file."""

    principals: Mapping[str, Principal]
    tokens: tokens.TokenTable[Principal]
    certificates: Mapping[str, Principal]


class Access:
    """Authenticates callers. Without a file every caller may call everything."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._anonymous = unrestricted()
        self._table: _Table | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the file, and reload it whenever it is replaced. Raises InvalidInput."""
        if self._path is not None:
            self._apply(await asyncio.to_thread(self._read, self._path))
            self._task = asyncio.create_task(self._watch(self._path), name="access")

    async def aclose(self) -> None:
        """Stop reloading the file."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def caller(
        self,
        role: Role,
        metadata: Iterable[tuple[str, str | bytes]],
        auth_context: Callable[[], AuthContext],
        peer: str,
    ) -> Caller:
        """Return the caller of an rpc that needs ``role``. Raises Unauthenticated.

        A token takes precedence over a certificate, which may be a proxy's.
        """
        if self._path is None:
            names = [_text(name) for name in auth_context().get("x509_common_name", ())]
            principal = unrestricted(names[0]) if names else self._anonymous
            return Caller(principal, role, peer, lambda: principal)
        header = next((value for key, value in metadata if key == "authorization"), None)
        token = None if header is None else _bearer(header)
        certificate = auth_context() if token is None else {}

        def find() -> Principal | None:
            if self._table is None:
                raise Unauthenticated("the access file has not been read")
            if token is not None:
                return self._table.tokens.owner(token)
            return _owner(self._table.certificates, certificate)

        known = find()
        if known is None:
            raise Unauthenticated(
                "the token or certificate is unknown", reason="CREDENTIALS_UNKNOWN"
            )
        return Caller(known, role, peer, find)

    def _apply(self, table: _Table) -> None:
        for principal in table.principals.values():
            principal.limiter.change(principal.limits)
        self._table = table

    async def _watch(self, path: Path) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if _stamp(path) != self._stamp:
                    table = await asyncio.to_thread(self._read, path)
                    self._apply(table)
                    log.info("access", principals=len(table.principals))
            except InvalidInput as error:
                log.error("access stays as it was", error=str(error))
            except Exception as error:
                log.error("access stays as it was; this is a bug", exc_info=error)

    def _read(self, path: Path) -> _Table:
        # Stored first, so that an unusable file is reported once.
        self._stamp = _stamp(path)
        try:
            return _parse(path.read_bytes(), self._table)
        except (OSError, ValueError) as error:
            raise _unusable(path, str(error)) from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return values that differ after the file was replaced; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _parse(content: bytes, before: _Table | None) -> _Table:
    """Return a file's content; principals of ``before`` keep their limiter. Raises ValueError."""
    file = from_toml(content, _File)
    principals: dict[str, Principal] = {}
    owners: dict[str, tuple[bytes, Principal]] = {}
    certificates: dict[str, Principal] = {}
    for name, entry in file.principals.items():
        old = before.principals.get(name) if before is not None else None
        principal = principals[name] = _principal(name, entry, file.limits, old)
        for token in entry.tokens:
            identifier, digest = tokens.parse(token)
            if identifier in owners:
                raise ValueError(f"token {identifier} is in the file twice")
            owners[identifier] = digest, principal
        for certificate in entry.certificates:
            if certificate.partition(":")[0] not in _AUTH_KEYS:
                raise ValueError(
                    f"certificate {certificate!r} must begin with one of {', '.join(_AUTH_KEYS)}:"
                )
            if certificate in certificates:
                raise ValueError(f"certificate {certificate!r} is in the file twice")
            certificates[certificate] = principal
    return _Table(
        principals=principals, tokens=tokens.TokenTable(owners), certificates=certificates
    )


def _principal(name: str, entry: _Entry, limits: CallLimits, before: Principal | None) -> Principal:
    patterns: dict[Role, list[str]] = {
        "classify": entry.classify,
        "train": entry.train,
        "admin": entry.admin,
    }
    for pattern in (*entry.classify, *entry.train, *entry.admin):
        if not _MODEL_PATTERN.fullmatch(pattern) or not pattern:
            raise ValueError(
                f"{pattern!r} of {name!r} is neither a model nor a prefix followed by *"
            )
    own_limits = entry.limits or limits
    return Principal(
        name=name,
        scopes={
            role: Scope(pattern for higher in ROLES[number:] for pattern in patterns[higher])
            for number, role in enumerate(ROLES)
        },
        limits=own_limits,
        limiter=before.limiter if before is not None else RateLimiter(own_limits),
    )


def _bearer(value: str | bytes) -> str:
    """Return the token in an ``authorization`` header. Raises Unauthenticated."""
    scheme, _, token = _text(value).partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("authorization must be: Bearer, a space, a token")
    return token.strip()


def _owner(certificates: Mapping[str, Principal], auth_context: AuthContext) -> Principal | None:
    """Return the owner of a certificate. Raises Unauthenticated if there is no certificate."""
    has_certificate = False
    for part, key in _AUTH_KEYS.items():
        for value in auth_context.get(key, ()):
            has_certificate = True
            if (owner := certificates.get(f"{part}:{_text(value)}")) is not None:
                return owner
    if not has_certificate:
        raise Unauthenticated("send a token (authorization: Bearer ...) or a client certificate")
    return None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _unusable(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"access file {str(path)!r} cannot be used: {why}", field="access")
