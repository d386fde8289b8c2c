"""Principals: authenticated callers, their roles, and the models that each role covers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from topwork.access.rate_limits import CallLimits, RateLimiter
from topwork.errors import Forbidden, Unauthenticated

Role = Literal["classify", "train", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""In ascending order: each role includes the permissions of the roles before it."""


class Scope:
    """A set of models: each pattern is a name, or a prefix of names followed by ``*``."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = tuple(patterns)
        self._names = frozenset(pattern for pattern in patterns if not pattern.endswith("*"))
        self._prefixes = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))
        self.has_all = "" in self._prefixes
        self.has_any = bool(patterns)

    def has(self, model: str) -> bool:
        """Return True if the scope contains ``model``."""
        return model in self._names or model.startswith(self._prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A person or program that the server can authenticate."""

    name: str
    """Empty if anonymous."""
    scopes: Mapping[Role, Scope]
    """Models by role, including those of the higher roles."""
    limits: CallLimits
    limiter: RateLimiter
    """Shared by all calls; survives reloads of the access file."""


def unrestricted(name: str = "") -> Principal:
    """Return a principal with every role for all models, for a server without an access file."""
    return Principal(
        name=name,
        scopes=dict.fromkeys(ROLES, Scope(["*"])),
        limits=CallLimits(),
        limiter=RateLimiter(CallLimits()),
    )


class Caller:
    """The principal of one call and the role that the call needs; authorizes each model."""

    def __init__(
        self, principal: Principal, role: Role, peer: str, find: Callable[[], Principal | None]
    ) -> None:
        """Take ``find`` to look the principal up again: rights may be revoked during a call."""
        self.principal = principal
        self.share = principal.name or host(peer)
        """Key of the share of slots: the principal, or the host if anonymous."""
        self.turns = principal.name or peer
        """Key of turns in the queue of images: the principal, or the connection if anonymous."""
        self.model = ""
        """The model of the latest check."""
        self._role = role
        self._find = find

    @property
    def scope(self) -> Scope:
        """The models that the call may use. Raises Unauthenticated."""
        return self._scope(self._role)

    def check_role(self) -> None:
        """Raise Forbidden unless the principal has the role for any model."""
        if not self.scope.has_any:
            raise Forbidden(f"{self.principal.name!r} has role {self._role!r} for no model")

    def check(self, model: str) -> None:
        """Raise Forbidden unless the call may use ``model``, whether or not the model exists."""
        self.model = model[:100]
        if not self.scope.has(model):
            raise Forbidden(
                f"{self.principal.name!r} lacks role {self._role!r} for model {model[:100]!r}",
                reason="MODEL_FORBIDDEN",
            )

    def may(self, role: Role, model: str) -> bool:
        """Return True if the caller has ``role`` for ``model``, too. Raises Unauthenticated."""
        return self._scope(role).has(model)

    def _scope(self, role: Role) -> Scope:
        principal = self._find()
        if principal is None or principal.name != self.principal.name:
            raise Unauthenticated(
                f"the credentials of {self.principal.name!r} were revoked",
                reason="CREDENTIALS_UNKNOWN",
            )
        return principal.scopes[role]


def host(peer: str) -> str:
    """Return the host part of a peer as gRPC names it (``ipv4:10.0.0.7:4711``)."""
    return peer.rpartition(":")[0]


_CALLER: ContextVar[Caller] = ContextVar("caller")


def set_caller(caller: Caller) -> None:
    """Set the caller of the rpc that the current task answers."""
    _CALLER.set(caller)


def caller() -> Caller:
    """Return the caller of the rpc that the current task answers. Raises LookupError elsewhere."""
    return _CALLER.get()
