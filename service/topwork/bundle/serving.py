"""serving.json: what a model serves, the one mutable thing about it, and how it came to that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from topwork.bundle.documents import document
from topwork.bundle.numbers import Number

KEPT_MOVES = 1_000
"""Moves that are remembered; the revisions themselves tell the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The serving pointer went from one revision to another."""

    revision: Number
    previous: Number
    """0: none served before."""
    why: str
    """What moved it, such as ``fit``, ``rollback`` or ``add_class``."""
    operation: str
    """The operation that did; empty where there was none."""
    time: datetime


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ServingState:
    """What serving.json holds: replaced as a whole, so state and history cannot disagree."""

    revision: Number
    """The one that serves."""
    pinned: tuple[Number, ...] = ()
    """Revisions that are never deleted, so clients may go on asking for them by number."""
    moves: tuple[Move, ...] = ()
    """The latest, oldest first."""

    def moved(self, move: Move) -> ServingState:
        """Return what serves after ``move``."""
        return replace(self, revision=move.revision, moves=(*self.moves, move)[-KEPT_MOVES:])

    def was_moved_by(self, operation: str, revision: int) -> bool:
        """Return whether one of the remembered moves was ``operation``'s, to ``revision``.

        An id whose operation was deleted may be another's, which has another revision.
        """
        return any((move.operation, move.revision) == (operation, revision) for move in self.moves)
