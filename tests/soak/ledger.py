"""Record of requested changes, their responses, and violated promises."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

State = Literal["unclear", "acknowledged", "refused"]
"""Unclear: the call was interrupted, so the change may or may not have been accepted."""


@dataclass(slots=True, kw_only=True)
class Change:
    """A requested change, written by its client only."""

    id: str
    model: str
    kind: str
    label: str = ""
    new_label: str = ""
    images: tuple[str, ...] = ()
    """Names of pictures or of junk files."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of ``images``, of ``add_classes``."""
    digests: tuple[str, ...] = ()
    """Image digests of the examples that are removed or moved."""
    validate_only: bool = False
    state: State = "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """A requested rollback from the revision that was expected to serve."""

    model: str
    expected: int
    state: State


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Changes, rollbacks, counts and violations; any thread may write."""

    changes: list[Change] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of events by topic and outcome."""
    answered: set[tuple[str, int]] = field(default_factory=set)
    """Models and revisions that answered a Classify."""
    slowest: float = 0.0
    """Seconds of the slowest answered Classify."""
    violations: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, topic: str, outcome: str, more: int = 1) -> None:
        """Add to the number of an outcome."""
        with self._lock:
            self.counts[topic, outcome] += more

    def fail(self, text: str) -> None:
        """Record a violated promise."""
        with self._lock:
            self.violations.append(text)

    def counts_of(self, topic: str) -> dict[str, int]:
        """Return the outcomes of a topic with their numbers, largest first."""
        with self._lock:
            outcomes = Counter(
                {how: n for (about, how), n in self.counts.items() if about == topic}
            )
        return dict(outcomes.most_common())
