"""What clients asked for, what they were told of it, and what went wrong with that."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

State = Literal["unclear", "acknowledged", "refused"]
"""Unclear: the call broke off, so nobody knows whether the change was taken."""


@dataclass(slots=True, kw_only=True)
class Change:
    """One change that was asked for. Written by the one who asks."""

    id: str
    model: str
    kind: str
    label: str = ""
    new_label: str = ""
    images: tuple[str, ...] = ()
    """Names of pictures, or of what is none."""
    validate_only: bool = False
    state: State = "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """One rollback that was asked for: from the revision that was expected to serve."""

    model: str
    expected: int
    state: State


@dataclass(slots=True, kw_only=True)
class Ledger:
    """All of it; any thread may write."""

    changes: list[Change] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of what happened, by what it happened to."""
    answered: set[tuple[str, int]] = field(default_factory=set)
    """Models and revisions that answered a Classify."""
    slowest: float = 0.0
    """Seconds of the slowest Classify that was answered."""
    violations: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, how: str, more: int = 1) -> None:
        """Count one more, or several."""
        with self._lock:
            self.counts[what, how] += more

    def violated(self, text: str) -> None:
        """Note that a promise was broken."""
        with self._lock:
            self.violations.append(text)

    def of(self, what: str) -> dict[str, int]:
        """Return what was counted of one thing, most first."""
        with self._lock:
            found = Counter({how: n for (one, how), n in self.counts.items() if one == what})
        return dict(found.most_common())
