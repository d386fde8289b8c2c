"""Manifest of a revision, and the description of its backbone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from topwork.bundle.comparison import Comparison, Rejection
from topwork.bundle.documents import document
from topwork.bundle.drift import UnknownDistribution
from topwork.bundle.numbers import Count, Number, Seed
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.errors import InvalidInput, NotReady
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec
from topwork.inputs.thumbnail import LARGEST, SIDE

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A sha256 in hexadecimal; validated when decoded, since it becomes part of a path."""

SCHEMA = 3
"""Schema version of manifest.json; readers refuse newer ones than NEWEST_SCHEMA."""

GROUPS_SCHEMA = 4
"""Schema version if exemplars have groups: versions that would split them refuse the revision."""

NEWEST_SCHEMA = GROUPS_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEmbeddings:
    """Embeddings of probe images on the machine that stored a backbone."""

    images: str
    """Name of the probe inputs; see ``topwork.inputs.kinds``."""
    embeddings: bytes
    """Little-endian float32 (N, D), a row per probe input."""

    def rows(self, width: int) -> NDArray[np.float32]:
        """Return the embeddings (N, ``width``). Raises ValueError if there is no whole row."""
        return np.frombuffer(self.embeddings, dtype="<f4").reshape(-1, width)


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneInfo:
    """Content of backbone.json: properties and origin of a backbone."""

    name: str
    """Such as ``efficientnet_lite0``."""
    identity: str
    """Text of all that the export depends on; an export with an equal identity is reused."""
    digest: Digest
    """sha256 of backbone.onnx."""
    preprocess: InputSpec
    """Says which inputs it takes; see ``topwork.inputs.kinds``."""
    width: Count
    """Width D of the embeddings."""
    precision: Literal["fp32", "int8"]
    licence: str
    source: str
    """Origin of the weights."""
    weights_digest: Digest
    """sha256 of the weights file."""
    parity_error: float
    """Largest difference between torch and ONNX Runtime in the parity check."""
    versions: dict[str, str]
    """Versions of the software that exported it."""
    twin: Digest | None = None
    """Digest of the fp32 backbone from which an int8 backbone was quantised; else None."""
    expected: ExpectedEmbeddings | None = None
    """None in backbones of earlier releases, which cannot be checked."""

    @property
    def has_graph(self) -> bool:
        """False if the client computes the embeddings, and the server runs nothing."""
        return not isinstance(self.preprocess, EmbeddingSpec)

    @property
    def image_spec(self) -> PreprocessSpec:
        """The preprocess spec of a backbone for images. Raises InvalidInput for another one."""
        if not isinstance(self.preprocess, PreprocessSpec):
            raise InvalidInput(
                f"the backbone {self.name!r} does not take images",
                field="backbone",
                reason="INPUT_KIND",
            )
        return self.preprocess

    def as_twin(self) -> BackboneInfo | None:
        """Return the description of the fp32 twin; None if there is none.

        It is derived from this one, because the signature of a revision covers no other.
        """
        if self.twin is None:
            return None
        return replace(self, digest=self.twin, precision="fp32", twin=None, expected=None)


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneNames:
    """Content of backbones/names.json: the backbones that were added by name."""

    names: dict[str, Digest]
    """Digests by name, such as ``mine``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenHead:
    """Hyperparameters that cross-validation chose; all are also inside the exported head."""

    kind: HeadKind
    normalisation: Normalisation
    strength: float
    """Inverse regularisation strength, as scikit-learn's C."""
    temperature: float
    """Divisor of the scores that gives calibrated logits."""
    unknown_threshold: float | None
    """An image is unknown if its unknown probability is at least this; None: no detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionGate:
    """Comparison of an int8 backbone with fp32, on the machine that ran the fit."""

    taken: bool
    """True if the int8 backbone was published."""
    loss_points: float
    """Accuracy that int8 loses, in percentage points; negative if it gains."""
    loss_low: float
    """Lower bound of the paired 95 % interval of ``loss_points``."""
    loss_high: float
    """Upper bound of the same interval."""
    speed_ratio: float
    """Throughput of int8 divided by that of fp32."""
    why: str
    """Reason in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRef:
    """Reference to a shard of exemplars, with their label in this revision."""

    label: str
    digest: Digest
    operation: str = field(default="", compare=False)
    """Id of the operation that added the exemplars; empty: a fit, or an earlier release."""
    added: datetime | None = field(default=None, compare=False)
    """Time at which they were added; None: an earlier release did not store it."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Content of manifest.json: one revision, which refers to all other files by sha256."""

    model: str
    revision: Number
    parent: Number
    """Number of the parent revision; 0 after a fit."""
    labels: tuple[str, ...]
    """Sorted by code point; class index = position."""
    backbone: Digest
    backbone_info: Digest
    """sha256 of backbone.json."""
    head: Digest
    metrics: Digest
    report: Digest
    exemplars: tuple[ShardRef, ...]
    """Shards, in the order of their addition, which has no effect."""
    data_digest: Digest
    """See ``Exemplars.data_digest``."""
    images: Count
    """Number of exemplars."""
    seed: Seed
    """Seed of the folds, inherited from the parent."""
    recipe: Recipe
    """Candidates of the head selection, inherited from the parent."""
    chosen: ChosenHead
    precision_gate: PrecisionGate | None
    """Comparison with fp32; None if int8 was not tried, and in all revisions except a fit's."""
    change: str
    """``fit``, or the kind of the operation, such as ``add_class``."""
    operation: str
    """Name of the operation; empty after a fit."""
    comparison: Comparison | None
    """Comparison with the parent; None without a parent to compare with."""
    rejection: Rejection | None
    """Reasons of the gate; None if the revision may serve."""
    created: datetime
    versions: dict[str, str]
    """Versions of the software that published the revision."""
    schema: int = SCHEMA
    examples: Digest | None = None
    """sha256 of examples.npz; None in revisions of earlier releases, which have no such file."""
    unknown_distribution: UnknownDistribution | None = None
    """Out-of-fold unknown probabilities of the exemplars, the reference of drift; None without a
    detector, and in revisions of earlier releases."""
    preview_pixels: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)] = SIDE
    """Side of the thumbnails that changes add to the exemplars, inherited from the parent."""


def check_may_serve(manifest: Manifest) -> None:
    """Raise NotReady if the gate rejected the revision."""
    if manifest.rejection is not None:
        raise NotReady(
            f"models/{manifest.model}/revisions/{manifest.revision} was rejected: "
            + "; ".join(manifest.rejection.failures),
            reason="REVISION_REJECTED",
        )
