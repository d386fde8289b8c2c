"""What a change of a model is, from request to outcome: plain data that a database can keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["queued", "embedding", "solving", "publishing", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One uploaded image, stored in the repository under ``digest``."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedUpload:
    """One uploaded image that is not used, and why; ``reason`` as in ``embed.Skipped``."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddClassJob:
    """What AddClass was asked to do."""

    model: str
    label: str
    uploads: tuple[Upload, ...]
    accepted: float
    """When it was, in seconds since 1970."""
    refused: tuple[SkippedUpload, ...] = ()
    """Images that were not even stored, such as too large ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is. ``total`` is 0 where nothing is counted."""

    stage: Stage
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Seconds that each stage took."""

    queued: float = 0.0
    embedding: float = 0.0
    solving: float = 0.0
    publishing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AddClassResult:
    """What AddClass did."""

    revision: int
    images_used: int
    skipped: tuple[SkippedUpload, ...]
    old_labels_accuracy_before: float
    old_labels_accuracy_after: float
    new_label_recall: float
    seconds: StageSeconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job ended without a result. ``kind`` is the name of a class in ``topwork.errors``."""

    kind: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended: exactly one of the two is set."""

    result: AddClassResult | None = None
    failure: Failure | None = None
