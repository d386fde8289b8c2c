"""Content of a report: the data that it is rendered from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.findings import Finding
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.learning.learn import Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedBackbone:
    """Result of evaluating a backbone on the training photos."""

    name: str
    image_size: int
    """Side of the input image in pixels."""
    views: int
    """1: the image; 2: the mirrored image, too, at twice the cost."""
    accuracy: float
    """Cross-validated accuracy of a head on the backbone."""
    accuracy_low: float
    """Lower end of the accuracy's 95 % Wilson interval."""
    accuracy_high: float
    knn_accuracy: float
    """Accuracy of the nearest neighbours among the embeddings of the other folds."""
    milliseconds: float
    """Time to decode and embed one image on one core of this machine."""
    megabytes: float
    """Size of the ONNX file."""
    width: int
    """Length of the embedding."""
    licence: str
    chosen: bool = False
    error: str = ""
    """Reason why the evaluation failed; then the numbers are 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """Parent revision, or the revision that served before."""

    manifest: Manifest
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """Facts about the fit or the operation that made a revision."""

    command: str
    """Command line or RPC."""
    findings: tuple[Finding, ...] = ()
    backbones: tuple[RankedBackbone, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the top, such as the reason why the fine-tuned backbone is not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Places of M exemplars on the embedding map."""

    rows: NDArray[np.int64]
    """(M,), exemplar indices, in order."""
    points: NDArray[np.float64]
    """(M, 2), rightwards and downwards, each 0 to 1."""
    share: float
    """See ``Projection.shown``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Data of a report."""

    manifest: Manifest
    metrics: Metrics
    backbone: BackboneInfo
    exemplars: Exemplars
    judged: Judged
    parent: Parent | None
    making: Making
    places: Places
