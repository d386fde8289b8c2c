"""Content of a report: all that it is made from."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.findings import Finding
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.learning.learn import Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedBackbone:
    """A backbone that was tried on these photos, or that could not be."""

    name: str
    image_size: int
    """Side in pixels of its input."""
    views: int
    """1: the image; 2: its mirror image too, at twice the cost."""
    accuracy: float
    """Of a head on it, by cross-validation."""
    accuracy_low: float
    """Lower end of its 95 % Wilson interval."""
    accuracy_high: float
    knn_accuracy: float
    """Of the nearest neighbours in its embeddings, leaving each image's own fold out."""
    milliseconds: float
    """To decode and embed one image on one core here."""
    megabytes: float
    """Of its ONNX file."""
    width: int
    """Of its embedding."""
    licence: str
    chosen: bool = False
    error: str = ""
    """Why it could not be tried; then the numbers are 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The revision that another one was made from, or that served before it."""

    manifest: Manifest
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How a revision came about: what only the fit or the operation that made it knows."""

    command: str
    """What was typed or called."""
    findings: tuple[Finding, ...] = ()
    backbones: tuple[RankedBackbone, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the top, such as why the fine-tuned backbone was not taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that a report shows."""

    manifest: Manifest
    metrics: Metrics
    backbone: BackboneInfo
    exemplars: Exemplars
    judged: Judged
    parent: Parent | None
    making: Making
