"""Job, progress and outcome of a change, as documents of the database of operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from topwork.bundle.comparison import Comparison, Gate
from topwork.bundle.documents import document
from topwork.bundle.evaluation import EvaluationResult
from topwork.bundle.findings import Finding
from topwork.bundle.metrics import Metrics
from topwork.bundle.numbers import Count, Number
from topwork.bundle.recipe import Recipe

ChangeKind = Literal[
    "add_class",
    "add_examples",
    "remove_class",
    "rename_class",
    "retrain",
    "remove_examples",
    "move_examples",
    "add_classes",
    "evaluate",
]

ChangeStage = Literal["queued", "embedding", "solving", "publishing", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An uploaded image, stored in the repository under ``digest``."""

    name: str
    digest: str
    label: str = ""
    """One of the job's ``labels``; empty: its ``label``, or of ``evaluate`` an unknown image."""
    columns: tuple[tuple[str, str], ...] = ()
    """Names and values for subgroups; only for ``evaluate``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationJob:
    """Parameters of ``evaluate``."""

    revision: Number = 0
    """0: the serving revision."""
    compare: Number = 0
    """Revision to compare it with; 0: none, or with ``name`` its parent."""
    name: str = ""
    """Evaluation set that is stored, or that is stored already if there are no images."""
    max_drop: float | None = None
    """Limit of the set's gate; None: it is not a gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedUpload:
    """An uploaded image that is not used; ``reason`` is that of an error, or DUPLICATE."""

    name: str
    reason: str
    message: str
    label: str = ""
    """The label that it was uploaded with; empty: the job's ``label``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An uploaded image that is a duplicate of an exemplar of another label."""

    name: str
    label: str
    """The other label."""
    other: str
    """The exemplar's name, possibly empty."""
    exact: bool
    """True if all pixels are equal; otherwise they are near-duplicates."""
    uploaded_label: str = ""
    """The label that it was uploaded with; empty: the job's ``label``."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A requested change."""

    kind: ChangeKind
    model: str
    accepted: float
    """Time of acceptance, in seconds since 1970."""
    label: str = ""
    """The label that is added, extended, removed or renamed; of ``remove_examples`` the only label
    that the examples lose, empty: all; of ``move_examples`` the label that they get; empty for
    ``retrain`` and ``add_classes``."""
    labels: tuple[str, ...] = ()
    """The labels that are added or extended, sorted; only for ``add_classes``."""
    new_label: str = ""
    """The label's new name; only for ``rename_class``."""
    uploads: tuple[Upload, ...] = ()
    refused: tuple[SkippedUpload, ...] = ()
    """Images that were not stored, because they are too large."""
    recipe: Recipe | None = None
    """The recipe of ``retrain``; None: the parent's."""
    gate: Gate = field(default_factory=Gate)
    expected_revision: int = 0
    """The only revision that may be changed; 0: any."""
    validate_only: bool = False
    """Dry run: report the result and change nothing."""
    digests: tuple[str, ...] = ()
    """Image digests in hexadecimal, sorted; only for ``remove_examples`` and ``move_examples``."""
    evaluation: EvaluationJob | None = None
    """Only for ``evaluate``."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a job. ``total`` is 0 in a stage without a count."""

    stage: ChangeStage | Literal[""] = ""
    """Empty: a stage of a newer version."""
    done: Count = 0
    total: Count = 0
    conflicts: tuple[Conflict, ...] = ()
    """Known once all images are embedded, before the head is solved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Duration of each stage, in seconds."""

    queued: float = 0.0
    embedding: float = 0.0
    solving: float = 0.0
    publishing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Labels and metrics of the revision that a dry run did not publish."""

    labels: tuple[str, ...]
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedExample:
    """An example that a change removed or moved."""

    digest: str
    """Image digest in hexadecimal."""
    labels: tuple[str, ...]
    """The labels that it lost, sorted."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeResult:
    """The result of a change, or of a dry run."""

    revision: Number = 0
    """The new revision; the parent if no image was new; 0 for a dry run."""
    images_used: Count = 0
    skipped: tuple[SkippedUpload, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    comparison: Comparison | None = None
    """None if no image was new."""
    gate_failures: tuple[str, ...] = ()
    """Reasons why the gate would reject it; only for a dry run."""
    findings: tuple[Finding, ...] = ()
    """Findings of the audit; only for a dry run: a revision has them in its report."""
    predicted: Predicted | None = None
    """Only for a dry run."""
    seconds: StageSeconds = field(default_factory=StageSeconds)
    parent: Number = 0
    """The revision that was changed; 0: an earlier release did not store it."""
    examples: tuple[ChangedExample, ...] = ()
    """Examples that were removed or moved, by digest."""
    missing_labels: Count = 0
    """Number of labels that the model needs before it serves."""
    evaluation: EvaluationResult | None = None
    """Only for ``evaluate``."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The error of a failed job. ``kind`` is the name of a class in ``topwork.errors``."""

    kind: str = ""
    reason: str = ""
    message: str = ""
    revision: Number = 0
    """The rejected revision; 0: none."""
    comparison: Comparison | None = None
    """The comparison of the rejected revision with its parent."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOutcome:
    """The outcome of a job: either ``result`` or ``failure`` is set."""

    result: ChangeResult | None = None
    failure: Failure | None = None
    ended: float = 0.0
    """Time of the end, in seconds since 1970; 0: the database has it."""
