"""Principals: the callers, their roles, and the models that each role is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from topwork.access.rate_limits import CallLimits, RateLimiter
from topwork.errors import Forbidden, Unauthenticated

Role = Literal["classify", "train", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""


class Scope:
    """Some models: each pattern is a name, or the beginning of names with ``*`` behind it."""

    def __init__(self, patterns: Iterable[str]) -> None:
        given = tuple(patterns)
        self._names = frozenset(one for one in given if not one.endswith("*"))
        self._beginnings = tuple(one[:-1] for one in given if one.endswith("*"))
        self.has_all = "" in self._beginnings
        self.has_any = bool(given)

    def has(self, model: str) -> bool:
        """Return whether a model is one of them."""
        return model in self._names or model.startswith(self._beginnings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody, or some program, that the server knows."""

    name: str
    """Empty: nobody in particular."""
    scopes: Mapping[Role, Scope]
    """Of every role, those of the roles above it included."""
    limits: CallLimits
    limiter: RateLimiter
    """What is used of the limits: the same one as long as the principal is known."""


def everybody(name: str = "") -> Principal:
    """Return who may do all: anybody, where no access file says who may what."""
    everything = Scope(["*"])
    return Principal(
        name=name,
        scopes=dict.fromkeys(ROLES, everything),
        limits=CallLimits(),
        limiter=RateLimiter(CallLimits()),
    )


class Caller:
    """Who makes one call, and the role that it needs. A service asks it of each model."""

    def __init__(
        self, principal: Principal, role: Role, peer: str, find: Callable[[], Principal | None]
    ) -> None:
        """Take what finds the principal anew: rights may be taken away while a call goes on."""
        self.principal = principal
        self.share = principal.name or host(peer)
        """Whose share of the server's slots the call takes: the principal's, else its host's."""
        self.model = ""
        """The one that was asked for last."""
        self._role = role
        self._find = find

    @property
    def scope(self) -> Scope:
        """The models that the call may be about. Raises Unauthenticated."""
        principal = self._find()
        if principal is None or principal.name != self.principal.name:
            raise Unauthenticated(
                f"the credentials of {self.principal.name!r} are no longer known",
                reason="CREDENTIALS_UNKNOWN",
            )
        return principal.scopes[self._role]

    def check_role(self) -> None:
        """Raise Forbidden unless there are models that the call may be about."""
        if not self.scope.has_any:
            raise Forbidden(f"{self.principal.name!r} is not {self._role!r} of any model")

    def check(self, model: str) -> None:
        """Raise Forbidden unless the call may be about this model, which may or may not exist."""
        self.model = model[:100]
        if not self.scope.has(model):
            raise Forbidden(
                f"{self.principal.name!r} is not {self._role!r} of model {model[:100]!r}",
                reason="MODEL_FORBIDDEN",
            )


def host(peer: str) -> str:
    """Return what a peer, as gRPC names it, has in common with all others of its host."""
    return peer.rpartition(":")[0]


_CALLER: ContextVar[Caller] = ContextVar("caller")


def enter(caller: Caller) -> None:
    """Say who makes the call that this task answers."""
    _CALLER.set(caller)


def caller() -> Caller:
    """Return who makes the call that this task answers. Raises LookupError outside of a call."""
    return _CALLER.get()
