"""Embeddings to train on, from files of NumPy."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from topwork.bundle.names import check_label
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.inputs.data.vectors import read_labelled, space_of_all
from topwork.inputs.embeddings import EmbeddingSpec, space_of, to_content
from topwork.limits import DEFAULT_LIMITS
from topwork_trainer.data.photos import Photos, check_counts


def scan_vectors(
    data: Path, *, space: str = "", classes: Sequence[str] | None = None
) -> tuple[Photos, EmbeddingSpec]:
    """Return the labelled embeddings of ``data``, and their space.

    ``space`` is its name, which a ``.npz`` may have itself. Raises InvalidInput as ``scan``, and if
    the widths or spaces differ.
    """
    found = {unicodedata.normalize("NFC", label): own for label, own in read_labelled(data).items()}
    wanted = None if classes is None else {unicodedata.normalize("NFC", name) for name in classes}
    labels = tuple(sorted(found if wanted is None else wanted))
    for label in labels:
        check_label(label, limits=DEFAULT_LIMITS, field="data")
    if len(labels) < 2:
        raise InvalidInput(f"{len(labels)} classes: at least two are needed", field="data")
    vectors = [vector for label in labels for vector in found.get(label, ())]
    check_counts(
        Counter({label: len(found.get(label, ())) for label in labels}),
        labels,
        kind="embeddings",
        limits=DEFAULT_LIMITS,
    )
    stored, width = space_of_all(vectors)
    if space and stored not in {"", space}:
        raise InvalidInput(f"the data has the space {stored!r}, not {space!r}", field="space")
    if not (space or stored):
        raise InvalidInput(
            "name what computed the embeddings: --space, or a text space in the .npz", field="space"
        )
    train = tuple(
        Photo(name=vector.name, label=label, read=partial(to_content, vector.row))
        for label in labels
        for vector in found[label]
    )
    photos = Photos(
        kind="embedding", labels=labels, train=train, held_out={}, left_out=(), notes=()
    )
    return photos, space_of(space or stored, width)
