"""Requests to change a model, as plain data for ``changes.intake``, from any transport."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from topwork.bundle.comparison import Gate
from topwork.changes.jobs import ChangeKind, EvaluationJob
from topwork.inputs.kinds import AnyInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRequest:
    """A change that a client requests; labels, head and normalisation are not validated yet."""

    kind: ChangeKind
    model: str
    request_id: str = ""
    """Idempotency key of the call, a UUID; empty: none."""
    label: str = ""
    labels: tuple[str, ...] = ()
    """Labels of the images; only for ``add_classes``."""
    new_label: str = ""
    """The label's new name; only for ``rename_class``."""
    digests: tuple[str, ...] = ()
    """Image digests in hexadecimal; only for ``remove_examples`` and ``move_examples``."""
    head: str = ""
    """Empty: the parent's. As ``normalisation``, only for ``retrain``."""
    normalisation: str = ""
    gate: Gate = field(default_factory=Gate)
    evaluation: EvaluationJob | None = None
    """Only for ``evaluate``."""
    expected_revision: int = 0
    """The only revision that may be changed; 0: any."""
    validate_only: bool = False
    path: str = ""
    """Prefix of the request's fields in errors, such as ``config.``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedImage:
    """An input of an upload, such as an encoded image."""

    name: str
    """May be empty."""
    content: AnyInput
    label: str = ""
    """Its label; only for ``add_classes`` and ``evaluate``, where an unknown image has none."""
    columns: tuple[tuple[str, str], ...] = ()
    """Names and values for subgroups; only for ``evaluate``."""

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


UploadItem: TypeAlias = ChangeRequest | Sequence[UploadedImage]
"""An upload is a request followed by any number of batches of images."""
