"""The access file: which tokens and certificates are whose, and what each of them may do.

docs/security.md shows one. It is TOML, and looked at anew twice a second.
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
from topwork.access.principals import ROLES, Caller, Principal, Role, Scope, everybody
from topwork.access.rate_limits import CallLimits, RateLimiter
from topwork.bundle.documents import document, from_toml
from topwork.errors import InvalidInput, Unauthenticated

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
"""How often the file is looked at."""

Shown: TypeAlias = Mapping[str, Iterable[bytes]]
"""What gRPC verified of a connection's peer."""

_PARTS = {
    "URI": "peer_uri",
    "DNS": "peer_dns",
    "EMAIL": "peer_email",
    "SUBJECT": "x509_subject",
    "CN": "x509_common_name",
}
"""Of a certificate: as the file names them, as gRPC does. The first that is known counts."""

_PATTERN = re.compile(r"[a-z0-9._-]{0,63}\*?")


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
    """What a file says."""

    principals: Mapping[str, Principal]
    tokens: tokens.KnownToken[Principal]
    certificates: Mapping[str, Principal]


class Access:
    """Says who calls. Without a file everybody may do everything."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._everybody = everybody()
        self._table: _Table | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the file, and again whenever it is replaced. Raises InvalidInput."""
        if self._path is not None:
            self._take(await asyncio.to_thread(self._read, self._path))
            self._task = asyncio.create_task(self._watch(self._path), name="access")

    async def aclose(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def caller(
        self,
        role: Role,
        metadata: Iterable[tuple[str, str | bytes]],
        shown: Callable[[], Shown],
        peer: str,
    ) -> Caller:
        """Return who makes a call that needs ``role``. Raises Unauthenticated.

        A token counts before a certificate: it is the caller's, the certificate may be a proxy's.
        """
        if self._path is None:
            names = [_text(one) for one in shown().get("x509_common_name", ())]
            principal = everybody(names[0]) if names else self._everybody
            return Caller(principal, role, peer, lambda: principal)
        given = next((value for key, value in metadata if key == "authorization"), None)
        token = None if given is None else _bearer(given)
        certificate = shown() if token is None else {}

        def find() -> Principal | None:
            if self._table is None:
                raise Unauthenticated("the access file has not been read")
            if token is not None:
                return self._table.tokens.owner(token)
            return _owner(self._table.certificates, certificate)

        found = find()
        if found is None:
            raise Unauthenticated(
                "the token or certificate is not known here",
                reason="CREDENTIALS_UNKNOWN",
            )
        return Caller(found, role, peer, find)

    def _take(self, table: _Table) -> None:
        """Let ``table`` count from now on."""
        for principal in table.principals.values():
            principal.limiter.change(principal.limits)
        self._table = table

    async def _watch(self, path: Path) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if _look(path) != self._stamp:
                    table = await asyncio.to_thread(self._read, path)
                    self._take(table)
                    log.info("access", principals=len(table.principals))
            except InvalidInput as error:
                log.error("access stays as it was", error=str(error))
            except Exception as error:
                log.error("access stays as it was; this is a bug", exc_info=error)

    def _read(self, path: Path) -> _Table:
        # Remembered first: a file that cannot be used is told once.
        self._stamp = _look(path)
        try:
            return _parse(path.read_bytes(), self._table)
        except (OSError, ValueError) as error:
            raise _unusable(path, str(error)) from error


def _look(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file, None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _parse(content: bytes, before: _Table | None) -> _Table:
    """Return what a file says; who is in it as before keeps its limiter. Raises ValueError."""
    file = from_toml(content, _File)
    principals: dict[str, Principal] = {}
    owners: dict[str, tuple[bytes, Principal]] = {}
    certificates: dict[str, Principal] = {}
    for name, entry in file.principals.items():
        old = before.principals.get(name) if before is not None else None
        principal = principals[name] = _principal(name, entry, file.limits, old)
        for one in entry.tokens:
            identifier, digest = tokens.parse(one)
            if identifier in owners:
                raise ValueError(f"token {identifier} is in the file twice")
            owners[identifier] = digest, principal
        for one in entry.certificates:
            if one.partition(":")[0] not in _PARTS:
                raise ValueError(f"certificate {one!r} must begin with one of {', '.join(_PARTS)}:")
            if one in certificates:
                raise ValueError(f"certificate {one!r} is in the file twice")
            certificates[one] = principal
    return _Table(
        principals=principals, tokens=tokens.KnownToken(owners), certificates=certificates
    )


def _principal(name: str, entry: _Entry, limits: CallLimits, before: Principal | None) -> Principal:
    given: dict[Role, list[str]] = {
        "classify": entry.classify,
        "train": entry.train,
        "admin": entry.admin,
    }
    for pattern in (*entry.classify, *entry.train, *entry.admin):
        if not _PATTERN.fullmatch(pattern) or not pattern:
            raise ValueError(f"{pattern!r} of {name!r} is no model, nor the beginning of one and *")
    wanted = entry.limits or limits
    return Principal(
        name=name,
        scopes={
            role: Scope(pattern for above in ROLES[number:] for pattern in given[above])
            for number, role in enumerate(ROLES)
        },
        limits=wanted,
        limiter=before.limiter if before is not None else RateLimiter(wanted),
    )


def _bearer(value: str | bytes) -> str:
    """Return the token in an ``authorization``. Raises Unauthenticated."""
    scheme, _, token = _text(value).partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("authorization must be: Bearer, a space, a token")
    return token.strip()


def _owner(certificates: Mapping[str, Principal], shown: Shown) -> Principal | None:
    """Return whose certificate it is. Raises Unauthenticated if there is none."""
    seen = False
    for part, key in _PARTS.items():
        for value in shown.get(key, ()):
            seen = True
            if (found := certificates.get(f"{part}:{_text(value)}")) is not None:
                return found
    if not seen:
        raise Unauthenticated("send a token (authorization: Bearer ...), or show a certificate")
    return None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _unusable(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"access file {str(path)!r} cannot be used: {why}", field="access")
