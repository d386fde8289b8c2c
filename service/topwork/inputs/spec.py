"""Base of the specs of all kinds of inputs, and of contents that a client sends as bytes."""

from __future__ import annotations

from dataclasses import dataclass


class InputSpec:
    """Data that says how the content of an input becomes what its backbone takes.

    Stored in backbone.json; each subclass is a dataclass, and belongs to one kind of input.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SentContent:
    """An input as a client sends it, in bytes; not checked yet. Each subclass is one kind."""

    data: bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.data)
