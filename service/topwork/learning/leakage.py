"""Leakage: images of a test set that repeat training images, or belong to their groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.inputs.duplicates import near_duplicates


def repeated_rows(new: Exemplars, old: Exemplars) -> NDArray[np.bool_]:
    """Return True for each row of ``new`` (N,) that repeats a row of ``old``.

    A row repeats another if the pixels are equal, or the images are near-duplicates with the same
    label. Labels may be different sets.
    """
    known = {digest.tobytes() for digest in old.digests}
    repeated = np.array([digest.tobytes() in known for digest in new.digests], dtype=bool)
    for target, label in enumerate(new.labels):
        rows = np.flatnonzero(new.targets == target)
        if label not in old.labels:
            continue
        trained = old.fingerprints[old.targets == old.labels.index(label)]
        groups = near_duplicates(np.concatenate([trained, new.fingerprints[rows]]))
        repeated[rows] |= np.isin(groups[len(trained) :], groups[: len(trained)])
    return repeated


def related_rows(new: Exemplars, old: Exemplars) -> NDArray[np.bool_]:
    """Return True for each row of ``new`` (N,) whose group has a row of ``old``."""
    known = {group.tobytes() for group in old.groups[old.groups.any(axis=1)]}
    return np.array([group.tobytes() in known for group in new.groups], dtype=bool)
