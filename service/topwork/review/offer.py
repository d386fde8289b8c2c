"""Offer: an image that was answered, as the review queue takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.candidates import Candidate, CandidateReason, CandidateRecord
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.review_policy import ReviewPolicy
from topwork.inputs.kinds import kind_of
from topwork.inputs.thumbnail import SIDE
from topwork.limits import InputLimits
from topwork.storage import files

FAR = 0.5
"""Least unknown probability of a far image: it is more probably unknown than known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An answered image of a model."""

    model: str
    revision: int
    backbone: BackboneInfo
    image: bytes
    """The encoded image."""
    embedding: NDArray[np.float16]
    """(D,), of its own memory: a row would hold the whole micro-batch."""
    label: str
    probability: float
    margin: float
    unknown_probability: float | None
    is_unknown: bool
    time: float
    """Seconds since 1970."""

    @property
    def usefulness(self) -> float:
        """What a label is worth, 0..1."""
        return usefulness(self.margin, self.unknown_probability)

    def reason(self, policy: ReviewPolicy) -> CandidateReason | None:
        """Return why ``policy`` keeps the image; None: it does not."""
        if policy.unknown and self.is_unknown:
            return "unknown"
        if policy.far and not self.is_unknown and (self.unknown_probability or 0.0) >= FAR:
            return "far"
        return "uncertain" if self.margin < policy.max_margin else None

    def candidate(
        self, reason: CandidateReason, limits: InputLimits, *, suggested_label: str = ""
    ) -> Candidate:
        """Return the candidate, by decoding the image again, which an encoder has done before.

        So the encoders need not compute for all images what the few that are kept need. Raises
        ImageError.
        """
        spec = self.backbone.preprocess
        kind = kind_of(spec)
        prepared = kind.prepare(self.image, spec, limits=limits)
        return Candidate(
            digest=kind.digest(prepared),
            record=CandidateRecord(
                reason=reason,
                time=self.time,
                content=files.sha256(self.image),
                backbone=self.backbone.digest,
                revision=self.revision,
                label=self.label,
                probability=self.probability,
                margin=self.margin,
                unknown_probability=self.unknown_probability,
                is_unknown=self.is_unknown,
                suggested_label=suggested_label,
            ),
            embedding=self.embedding,
            fingerprint=kind.fingerprint(self.image, prepared),
            preview=kind.preview(self.image, prepared, SIDE),
        )


def usefulness(margin: float, unknown_probability: float | None) -> float:
    """Return what a label of an image is worth, 0..1: the higher of two doubts."""
    return max(1 - margin, unknown_probability or 0.0)
