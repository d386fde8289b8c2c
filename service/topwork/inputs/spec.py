"""Base of the specs of all kinds of inputs."""

from __future__ import annotations


class InputSpec:
    """Data that says how the content of an input becomes what its backbone takes.

    Stored in backbone.json; each subclass is a dataclass, and belongs to one kind of input.
    """

    __slots__ = ()
