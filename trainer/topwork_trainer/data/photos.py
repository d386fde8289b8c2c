"""Photos, or texts, to train on, held-out ones, and the check that each class has enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.inputs.folders import LeftOut
from topwork.limits import InputLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """Photos, or inputs of another kind, to train on, held-out ones, and what is left out."""

    kind: str = "image"
    """Name of their kind; see ``topwork.inputs.kinds``."""
    labels: tuple[str, ...]
    """Sorted."""
    train: tuple[Photo, ...]
    """Sorted by label, then by path."""
    held_out: Mapping[str, tuple[Photo, ...]]
    """Photos to test on, by the name of their split; empty if the data has no splits."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    """Decisions about the data, a sentence each."""


def check_counts(
    counts: Counter[str],
    labels: Sequence[str],
    *,
    kind: str = "files",
    limits: InputLimits,
    more: str = "",
) -> None:
    """Raise InvalidInput if a label has too few; ``kind`` names the counted things."""
    few = [label for label in labels if counts[label] < limits.min_images_per_label]
    if few:
        named = ", ".join(f"{label!r} has {counts[label]}" for label in few[:5])
        raise InvalidInput(
            f"at least {limits.min_images_per_label} {kind} per class are needed: {named}{more}",
            field="data",
            reason="TOO_FEW_IMAGES",
        )
