"""Findings of an audit of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Problem found in the training images, with the images and labels concerned."""

    kind: str
    """Stable identifier for programs, such as ``suspected_label``."""
    severity: Severity
    """error: not used for training; warning: likely harmful; note: information."""
    message: str
    """One sentence for people, with the numbers."""
    images: tuple[str, ...]
    """Names, as in the exemplars; empty if the finding concerns a whole class or data set."""
    labels: tuple[str, ...]


def skipped_image(name: str, label: str, *, reason: str, message: str) -> Finding:
    """Return the finding for an image that training skips; ``reason`` as in ``embed.Skipped``."""
    duplicate = reason == "DUPLICATE"
    large = "too_large" if reason.endswith("_TOO_LARGE") else "unreadable"
    return Finding(
        kind="exact_duplicate" if duplicate else large,
        severity="note" if duplicate else "error",
        message=f"{name} was left out: {message}",
        images=(name,),
        labels=(label,),
    )
