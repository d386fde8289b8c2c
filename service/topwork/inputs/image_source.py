"""Image that is read when it is needed, with its label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Image that can be read, with its label."""

    name: str
    """Name in messages, such as the path."""
    label: str
    read: Callable[[], bytes]
    """Returns the encoded image. Raises OSError or ImageError."""
    group: str = ""
    """Name of the group of images, such as a patient, that folds keep together; empty: none."""
