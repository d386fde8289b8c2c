"""Serving pointer: serving.json, a model's only mutable file, with its history."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from topwork.bundle.documents import document
from topwork.bundle.numbers import Number

FILE = "serving.json"
"""File name, in the directory of the model."""

MAX_MOVES = 1_000
"""Length of the history in serving.json; older moves are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Change of the serving pointer from one revision to another."""

    revision: Number
    previous: Number
    """Revision that served before; 0: none."""
    why: str
    """Cause of the move, such as ``fit``, ``rollback`` or ``add_class``."""
    operation: str
    """Name of the operation that moved the pointer; empty without one."""
    time: datetime


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ServingState:
    """Content of serving.json, replaced atomically, so that pointer and history agree."""

    revision: Number
    """Number of the serving revision."""
    pinned: tuple[Number, ...] = ()
    """Revisions that are never deleted, so that clients can request them by number."""
    moves: tuple[Move, ...] = ()
    """Latest moves, oldest first."""

    def moved(self, move: Move) -> ServingState:
        """Return the state after ``move``."""
        return replace(self, revision=move.revision, moves=(*self.moves, move)[-MAX_MOVES:])

    def was_moved_by(self, operation: str, revision: int) -> bool:
        """Return True if the history has a move to ``revision`` by ``operation``.

        Compares both, since a new operation may reuse the name of a deleted one.
        """
        return any((move.operation, move.revision) == (operation, revision) for move in self.moves)
