"""Accuracy of a model on held-out splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from topwork.bundle.metrics import wilson_interval
from topwork.inputs.image_source import ImageSource
from topwork.learning.leakage import related_rows, repeated_rows
from topwork.training.embed import Skipped
from topwork_trainer.fit.attempts import Attempt, Attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitResult:
    """Accuracy of a model on a held-out split."""

    split: str
    """Name of its folder, such as ``test``."""
    images: int
    """Number of judged photos."""
    right: int
    """Number of judged photos whose most probable label is right."""
    repeated: int
    """Number of photos not judged because they repeat training photos, exactly or nearly."""
    related: int
    """Number of other photos not judged because a training photo has the same group."""
    skipped: Sequence[Skipped]
    """Photos that are unreadable or duplicates within the split."""

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Accuracy and the bounds of its 95 % Wilson interval; None if no photo was judged."""
        if not self.images:
            return None
        return (self.right / self.images, *wilson_interval(self.right, self.images))

    def __str__(self) -> str:
        """Return a sentence with the accuracy and its interval."""
        more = f"; {self.repeated} more repeat training photos" if self.repeated else ""
        if self.related:
            more += f"; {self.related} more belong to groups of training photos"
        if self.interval is None:
            return f"No photo of the held-out split {self.split} could be judged{more}"
        accuracy, low, high = self.interval
        return (
            f"Accuracy on the held-out split {self.split}: {accuracy:.3f}, 95 % interval "
            f"{low:.3f} to {high:.3f} ({self.images} images){more}"
        )


def judge(
    attempts: Attempts, attempt: Attempt, split: str, photos: Sequence[ImageSource]
) -> SplitResult:
    """Return the accuracy of the head and backbone of ``attempt`` on the photos of a split.

    Photos with the pixels of a training photo, and near-duplicates with the same label, are not
    judged: they would leak, as between the folds of the cross-validation. Neither are photos of a
    group that has training photos.
    """
    exemplars, skipped = replace(attempts, sources=photos).embed(
        attempts.open(attempt.backbone), stage=f"judge {split}"
    )
    if exemplars is None:
        return SplitResult(split=split, images=0, right=0, repeated=0, related=0, skipped=skipped)
    repeated = repeated_rows(exemplars, attempt.exemplars)
    related = related_rows(exemplars, attempt.exemplars) & ~repeated
    fresh = ~(repeated | related)
    predicted = attempt.learned.head.probabilities(exemplars.embedding_rows[fresh]).argmax(axis=1)
    targets = np.array([attempt.exemplars.labels.index(label) for label in exemplars.labels])
    return SplitResult(
        split=split,
        images=int(fresh.sum()),
        right=int((predicted == targets[exemplars.targets[fresh]]).sum()),
        repeated=int(repeated.sum()),
        related=int(related.sum()),
        skipped=skipped,
    )
