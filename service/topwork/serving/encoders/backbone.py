"""Interface of a backbone in memory: an image's pixels in, its embedding delivered."""

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
    """One run of several images: the same object for all of them."""

    start: float
    """As time.perf_counter() tells it."""
    seconds: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """One image's embedding, and what it cost."""

    embedding: NDArray[np.float32]
    """(D,)"""
    waited: float
    """Seconds between the image's decoding and its micro-batch."""
    computed: float
    """Seconds of the backbone: this image's share of its micro-batch."""
    micro_batch: int
    """Images in it."""
    run: MicroBatch | None = None
    """None on a CPU, where an image has a run of its own."""


Deliver = Callable[[Embedded | Exception], None]
"""Takes an image's embedding, or why there is none. Called once, in any thread."""


class Backbone(Protocol):
    """What embeds images, for all models that share it. Called in several threads at once."""

    @property
    def info(self) -> BackboneInfo:
        """What the bundle says of it."""

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """Embed one image; ``present`` images wait or are at work, this one included.

        Raises nothing: what goes wrong is delivered.
        """

    def close(self) -> None:
        """Embed what was taken, then end the threads, if it has any, and wait for that."""
