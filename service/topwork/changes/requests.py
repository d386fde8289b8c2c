"""Requests to change a model, as plain data: what every transport hands to ``changes.intake``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from topwork.bundle.comparison import Gate
from topwork.changes.jobs import ChangeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRequest:
    """A change as a client asks for it; its labels, head and normalisation are not checked yet."""

    kind: ChangeKind
    model: str
    request_id: str = ""
    """A UUID by which the call can be repeated; empty: none was given."""
    label: str = ""
    new_label: str = ""
    """The label's new name; ``rename_class`` only."""
    head: str = ""
    """Empty: the parent's; ``retrain`` only, as ``normalisation`` is."""
    normalisation: str = ""
    gate: Gate = field(default_factory=Gate)
    expected_revision: int = 0
    """The only revision that may be changed; 0: whichever serves."""
    validate_only: bool = False
    path: str = ""
    """Prefix of the request's fields in errors, such as ``config.``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedImage:
    """One encoded image of an upload."""

    name: str
    """May be empty."""
    content: bytes


UploadItem: TypeAlias = ChangeRequest | Sequence[UploadedImage]
"""An upload is one request, and after it any number of portions of images."""
