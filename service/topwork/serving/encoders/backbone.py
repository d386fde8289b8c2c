"""Interface of a backbone in memory: takes pixels, delivers embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import Pixels


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class MicroBatch:
    """Run of several images, which share this object."""

    start: float
    """Start (time.perf_counter())."""
    seconds: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Embedding of an image with its timings."""

    embedding: NDArray[np.float32]
    """(D,)"""
    waited: float
    """Seconds from the end of decoding to the start of the micro-batch."""
    computed: float
    """Seconds of the backbone: this image's share of its micro-batch."""
    micro_batch: int
    """Number of images in the micro-batch."""
    run: MicroBatch | None = None
    """None on a CPU, where each image has its own run."""


Deliver = Callable[[Embedded | Exception], None]
"""Callback with an image's embedding or the error. Called once, in any thread."""


class Backbone(Protocol):
    """Encoder of images, shared by models. Called in several threads at once."""

    @property
    def info(self) -> BackboneInfo:
        """Metadata from the bundle."""

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """Embed one image; ``present`` images wait or are in progress, including this image.

        Raises nothing: errors go to ``deliver``.
        """

    def close(self) -> None:
        """Finish all accepted images, then join the backbone's threads, if it has any."""
