"""Interface of the scheduler: request batches, and the outcomes of their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.errors import ImageError
from topwork.inputs.image import WHOLE, Region
from topwork.serving.encoders.encoder import MicroBatch

A_co = TypeVar("A_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutcome:
    """Result of one image, with the seconds of its stages."""

    result: NDArray[np.float32] | ImageError
    """Output (D,) of the backbone, or the error of the image."""
    waited: float
    """Seconds in the queue, and between decoding and the backbone."""
    decoded: float
    """Seconds of decoding and preprocessing."""
    computed: float = 0.0
    """Seconds of the backbone: this image's share of its run."""
    run: MicroBatch | None = None
    """None on a CPU, where each image has its own run."""
    region: Region = WHOLE
    """The part of the upright image that was embedded."""

    @property
    def images(self) -> int:
        """Number of images in the run."""
        return 1 if self.run is None else self.run.images


@dataclass(frozen=True, slots=True)
class Scores:
    """Outputs of a head for N embeddings; see LoadedHead.run."""

    probabilities: NDArray[np.float32]
    """(N, C)"""
    unknown: NDArray[np.float32] | None
    """(N,)"""
    seconds: float
    """Seconds of the head's run, shared by all answers of the group."""


@dataclass(frozen=True, slots=True)
class Content:
    """Image for an encoder; see Item."""

    data: bytes
    pixels: bool = False


class BatchHead(Protocol):
    """Head of a request batch; see LoadedHead."""

    @property
    def size(self) -> int:
        """Bytes of the weights."""

    def run(self, embeddings: Float32Array) -> tuple[Float32Array, Float32Array | None]:
        """Return probabilities (N, C) and unknown probabilities (N,) for outputs of a backbone."""


class RequestBatch(Protocol[A_co]):
    """Request batch: images for one backbone and one head."""

    @property
    def images(self) -> int:
        """Number of images; at least 1."""

    @property
    def backbone(self) -> str:
        """Digest of the backbone."""

    def content(self, index: int) -> Content | Float32Array:
        """Return an image, or an embedding (D,), which no encoder has to compute.

        Raises ImageError.
        """

    @property
    def head(self) -> BatchHead:
        """Head for the embeddings."""

    def answer(self, outcomes: list[ImageOutcome], scores: Scores | None) -> A_co:
        """Return the answer.

        ``outcomes`` has one outcome per image, in order; ``scores`` has one row per embedded image,
        in the same order, and is None if no image was embedded.
        """
