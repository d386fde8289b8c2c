"""Held-out splits: accuracy of a learnt model on photos that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.metrics import wilson_interval
from topwork.inputs.duplicates import near_duplicates
from topwork.training.embed import ImageSource, Skipped
from topwork_trainer.fit.attempts import Attempt, Attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """How a model does on one split."""

    split: str
    """Name of its folder, such as ``test``."""
    images: int
    """Photos that were judged."""
    right: int
    """Those whose most probable label is their own."""
    repeated: int
    """Photos that were not judged, as they repeat training photos, or nearly."""
    skipped: Sequence[Skipped]
    """Photos that could not be read, or repeat others of the split."""

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Accuracy and the ends of its 95 % Wilson interval; None if nothing was judged."""
        if not self.images:
            return None
        return (self.right / self.images, *wilson_interval(self.right, self.images))

    def __str__(self) -> str:
        """Return a sentence with the numbers."""
        more = f"; {self.repeated} more repeat training photos" if self.repeated else ""
        if self.interval is None:
            return f"On {self.split}, which was held out, no photo could be judged{more}"
        accuracy, low, high = self.interval
        return (
            f"On {self.split}, which was held out: accuracy {accuracy:.3f}, 95 % interval "
            f"{low:.3f} to {high:.3f} ({self.images} images){more}"
        )


def judge(
    attempts: Attempts, attempt: Attempt, split: str, photos: Sequence[ImageSource]
) -> HeldOut:
    """Return how the head and backbone of ``attempt`` do on the photos of a split.

    Photos that repeat training photos are not judged: those of the same pixels, and near-duplicates
    of the same label, which share a fold in cross-validation for the same reason.
    """
    found, skipped = replace(attempts, sources=photos).embed(
        attempt.backbone, attempts.session(attempt.backbone), stage=f"judge {split}"
    )
    if found is None:
        return HeldOut(split=split, images=0, right=0, repeated=0, skipped=skipped)
    fresh = ~_repeated(found, attempt.exemplars)
    called = attempt.learned.head.probabilities(found.embeddings[fresh]).argmax(axis=1)
    places = np.array([attempt.exemplars.labels.index(label) for label in found.labels])
    return HeldOut(
        split=split,
        images=int(fresh.sum()),
        right=int((called == places[found.targets[fresh]]).sum()),
        repeated=int((~fresh).sum()),
        skipped=skipped,
    )


def _repeated(new: Exemplars, old: Exemplars) -> NDArray[np.bool_]:
    """Return which rows of ``new`` repeat one of ``old``, (N,)."""
    known = {digest.tobytes() for digest in old.digests}
    repeated = np.array([digest.tobytes() in known for digest in new.digests], dtype=bool)
    for target, label in enumerate(new.labels):
        rows = np.flatnonzero(new.targets == target)
        taught = old.fingerprints[old.targets == old.labels.index(label)]
        groups = near_duplicates(np.concatenate([taught, new.fingerprints[rows]]))
        repeated[rows] |= np.isin(groups[len(taught) :], groups[: len(taught)])
    return repeated
