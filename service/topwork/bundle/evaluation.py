"""Evaluation of a revision on labelled images: metrics, unknown detection, subgroups."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from topwork.bundle.comparison import Comparison
from topwork.bundle.documents import document
from topwork.bundle.metrics import Metrics
from topwork.bundle.numbers import Count, Number


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownDetection:
    """Out-of-distribution detection on known images and, if there are some, unknown ones."""

    known: Count
    """Images with a label of the model."""
    false_rejects: Count
    """Images of ``known`` that are called unknown."""
    strangers: Count
    """Images without a label of the model."""
    detected: Count
    """Images of ``strangers`` that are called unknown."""
    auroc: float | None
    """Probability that a stranger has a higher score than a known image; None without strangers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgroup:
    """Images with a label of the model that have the same value in a column of the manifest."""

    column: str
    value: str
    """Empty: the column has no value."""
    images: Count
    right: Count
    """Images whose most probable label is correct."""
    ece: float
    false_rejects: Count | None
    """Images that are called unknown; None if the model does not detect unknown images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Metrics of a revision on images that it was not trained on."""

    revision: Number
    metrics: Metrics
    """Of the images with a label of the model, whether they are called unknown or not."""
    unknown: UnknownDetection | None
    """None if the model does not detect unknown images."""
    subgroups: tuple[Subgroup, ...]
    """By column, in the manifest's order, then by value."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Result of a revision on an evaluation set, or on images that are not stored as one."""

    model: str
    revision: Number
    created: datetime
    name: str = ""
    """Name of the evaluation set; empty: the images are not stored."""
    made: datetime | None = None
    """Creation time of the set, which may have been deleted and stored again since."""
    operation: str = ""
    """Operation that evaluated it; empty: without a server."""
    evaluation: Evaluation | None = None
    """None if no image that can be judged has a label of the revision."""
    compared: Number = 0
    """Revision of ``comparison.before``: the parent, or one that was asked for; 0: none."""
    comparison: Comparison | None = None
    repeated: Count = 0
    """Images that are not judged because a revision was trained on them, or on near-duplicates."""
    related: Count = 0
    """Other images that are not judged because a revision was trained on their group."""
    lacking: dict[str, Count] = field(default_factory=dict)
    """Images by label that the revision lacks; they count as unknown images."""
    failure: str = ""
    """Sentence with the numbers if the gate of the set rejects the revision."""
