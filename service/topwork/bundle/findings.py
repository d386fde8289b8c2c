"""Findings of an audit of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found, with the images that it was found in."""

    kind: str
    """Stable, for programs, such as ``suspected_label``."""
    severity: Severity
    """error: not used for training; warning: likely to harm; note: good to know."""
    message: str
    """One sentence for people, with the numbers."""
    images: tuple[str, ...]
    """Their names, as exemplars have them; empty where it concerns a whole class or set."""
    labels: tuple[str, ...]
    """The labels concerned."""


def left_out(name: str, label: str, *, reason: str, message: str) -> Finding:
    """Return the finding for an image that was not used; ``reason`` as in ``embed.Skipped``."""
    duplicate = reason == "DUPLICATE"
    kinds = {"DUPLICATE": "exact_duplicate", "IMAGE_TOO_LARGE": "too_large"}
    return Finding(
        kind=kinds.get(reason, "unreadable"),
        severity="note" if duplicate else "error",
        message=f"{name} was left out: {message}",
        images=(name,),
        labels=(label,),
    )
