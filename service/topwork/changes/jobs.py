"""What a change of a model is, from request to outcome: plain data that a database can keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from topwork.bundle.comparison import Comparison, Gate
from topwork.bundle.documents import document
from topwork.bundle.findings import Finding
from topwork.bundle.metrics import Metrics
from topwork.bundle.numbers import Count, Number
from topwork.bundle.recipe import Recipe

ChangeKind = Literal["add_class", "add_examples", "remove_class", "rename_class", "retrain"]

ChangeStage = Literal["queued", "embedding", "solving", "publishing", "done"]


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
class Conflict:
    """An uploaded image that shows what an exemplar of another label shows."""

    name: str
    label: str
    """The other label."""
    other: str
    """The exemplar's name; may be empty."""
    exact: bool
    """Whether all pixels are the same; else they are near-duplicates."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a change was asked to do."""

    kind: ChangeKind
    model: str
    accepted: float
    """When it was, in seconds since 1970."""
    label: str = ""
    """The label that is added, taught, removed or renamed; empty for ``retrain``."""
    new_label: str = ""
    """What ``rename_class`` makes of it."""
    uploads: tuple[Upload, ...] = ()
    refused: tuple[SkippedUpload, ...] = ()
    """Images that were not even stored, such as too large ones."""
    recipe: Recipe | None = None
    """What ``retrain`` chooses from; None: the parent's."""
    gate: Gate = field(default_factory=Gate)
    expected_revision: int = 0
    """The only revision that may be changed; 0: whichever serves."""
    validate_only: bool = False
    """Say what would come of it and change nothing."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is. ``total`` is 0 where nothing is counted."""

    stage: ChangeStage | Literal[""] = ""
    """Empty: one that this version does not know."""
    done: Count = 0
    total: Count = 0
    conflicts: tuple[Conflict, ...] = ()
    """Known once all images are embedded, which is before anything is learnt from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Seconds that each stage took."""

    queued: float = 0.0
    embedding: float = 0.0
    solving: float = 0.0
    publishing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a revision would be, were it published."""

    labels: tuple[str, ...]
    metrics: Metrics


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeResult:
    """What a change did, or would do."""

    revision: Number = 0
    """The one that serves; the parent where nothing was to be done; 0 if only validated."""
    images_used: Count = 0
    skipped: tuple[SkippedUpload, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    comparison: Comparison | None = None
    """None where nothing was to be done."""
    gate_failures: tuple[str, ...] = ()
    """Why it would be rejected; only where it was only validated."""
    findings: tuple[Finding, ...] = ()
    """Of the audit; only where it was only validated: else the revision's report has them."""
    predicted: Predicted | None = None
    """Only where it was only validated."""
    seconds: StageSeconds = field(default_factory=StageSeconds)


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job ended without a result. ``kind`` is the name of a class in ``topwork.errors``."""

    kind: str = ""
    reason: str = ""
    message: str = ""
    revision: Number = 0
    """The revision that was published and rejected."""
    comparison: Comparison | None = None
    """The numbers that it was rejected for."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOutcome:
    """How a job ended: exactly one of the first two is set."""

    result: ChangeResult | None = None
    failure: Failure | None = None
    ended: float = 0.0
    """When, in seconds since 1970; 0: ask the database."""
