"""Manifest of a bundle, and its JSON form."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from topwork.bundle.comparison import Comparison, Rejection
from topwork.bundle.documents import document
from topwork.bundle.numbers import Count, Number, Seed
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.errors import NotReady
from topwork.inputs.preprocess import PreprocessSpec

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A sha256 in hexadecimal; checked when read, since it becomes part of a path."""

SCHEMA = 3
"""Version of the JSON forms; a reader refuses a newer one."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneInfo:
    """backbone.json: what a backbone is and where it came from."""

    name: str
    """Such as ``efficientnet_lite0``."""
    identity: str
    """What its export depends on; where it is equal, the export is used again."""
    digest: Digest
    """sha256 of backbone.onnx."""
    preprocess: PreprocessSpec
    width: Count
    """D, the embedding's width."""
    precision: Literal["fp32", "int8"]
    licence: str
    source: str
    """Where the weights came from."""
    weights_digest: Digest
    """sha256 of the weights file."""
    parity_error: float
    """Largest difference between torch and ONNX Runtime in the parity check."""
    versions: dict[str, str]
    """Software that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenHead:
    """What cross-validation chose; all of it is inside the exported head."""

    kind: HeadKind
    normalisation: Normalisation
    strength: float
    """The inverse regularisation."""
    temperature: float
    """What scores were divided by to become calibrated logits."""
    unknown_threshold: float | None
    """From this on an image's unknown probability makes it unknown; None: the head has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionGate:
    """Whether an int8 backbone was taken, and why, on the machine that fitted it."""

    taken: bool
    loss_points: float
    """Percentage points of accuracy that int8 loses; negative where it wins."""
    loss_low: float
    """Lower end of the paired 95 % interval of ``loss_points``."""
    loss_high: float
    """Upper end of the same."""
    speed_ratio: float
    """Times as fast as fp32, on the machine that asked."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRef:
    """A shard of exemplars, and the label that they bear in this revision."""

    label: str
    digest: Digest


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json: one revision. It names all that it refers to by sha256."""

    model: str
    revision: Number
    parent: Number
    """The revision that it was made from; 0 when it was made by a fit."""
    labels: tuple[str, ...]
    """Sorted by code point; class index = position."""
    backbone: Digest
    backbone_info: Digest
    """sha256 of backbone.json."""
    head: Digest
    metrics: Digest
    report: Digest
    exemplars: tuple[ShardRef, ...]
    """In the order in which they came, which means nothing."""
    data_digest: Digest
    """See ``Exemplars.data_digest``."""
    images: Count
    """Exemplars in all."""
    seed: Seed
    """Seed of the folds; a child revision keeps its parent's."""
    recipe: Recipe
    """What the head was to be chosen from; a child revision keeps its parent's."""
    chosen: ChosenHead
    precision_gate: PrecisionGate | None
    """What int8 costs and gains; None where it was not tried, and in all revisions but a fit's."""
    change: str
    """What made it: ``fit``, or the kind of the operation, such as ``add_class``."""
    operation: str
    """The operation that made it; empty when it was made by a fit."""
    comparison: Comparison | None
    """With its parent; None where there was none to compare with."""
    rejection: Rejection | None
    """Why it may not serve; None: it may."""
    created: datetime
    versions: dict[str, str]
    """Software that made it."""
    schema: int = SCHEMA


def check_may_serve(manifest: Manifest) -> None:
    """Raise NotReady if a revision was rejected by its gate."""
    if manifest.rejection is not None:
        raise NotReady(
            f"models/{manifest.model}/revisions/{manifest.revision} was rejected: "
            + "; ".join(manifest.rejection.failures),
            reason="REVISION_REJECTED",
        )
