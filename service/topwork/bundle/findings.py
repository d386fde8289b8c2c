"""What an audit of training images says."""

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
