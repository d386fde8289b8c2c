"""Answer of an Infer request: probabilities, logits and embeddings as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topwork.arrays import Float32Array
from topwork.errors import ImageError
from topwork.serving.classify_batch import Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """Outputs of one revision for N images, one row per image, in request order."""

    revision: int
    labels: tuple[str, ...]
    """C labels; class index = position."""
    probabilities: Float32Array
    """(N, C)"""
    logits: Float32Array | None
    """(N, C); None unless requested."""
    embeddings: Float32Array
    """(N, D)"""


def inferred(finished: Finished, *, logits: bool) -> Inferred:
    """Return the outputs. Raises the first ImageError, with the image's index in the message."""
    rows: list[Float32Array] = []
    for index, outcome in enumerate(finished.outcomes):
        if isinstance(outcome.result, ImageError):
            error = outcome.result
            raise type(error)(f"image {index}: {error}", field=error.field, reason=error.reason)
        rows.append(outcome.result)
    assert finished.scores is not None, "every image was embedded"
    embeddings, manifest = np.stack(rows), finished.snapshot.manifest
    return Inferred(
        revision=manifest.revision,
        labels=manifest.labels,
        probabilities=finished.scores.probabilities,
        logits=finished.snapshot.head.logits(embeddings) if logits else None,
        embeddings=embeddings,
    )
