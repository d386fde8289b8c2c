"""Interface of a backbone in this process: takes prepared inputs, delivers embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.bundle.manifest import BackboneInfo
from topwork.serving.encoders.encoder import Check, MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Embedding of an input with its timings; see Encoded."""

    embedding: Float32Array
    """(D,)"""
    waited: float
    computed: float
    run: MicroBatch | None = None


DeliverEmbedded = Callable[[Embedded | Exception], None]
"""Callback with an input's embedding or the error. Called once, in any thread."""


class Backbone(Protocol):
    """Backbone in memory, shared by models. Called in several threads at once."""

    @property
    def info(self) -> BackboneInfo:
        """Metadata from the bundle."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Measured seconds of a run on one core and on all; infinite: there is no such session."""

    @property
    def check(self) -> Check:
        """Result of the check of all sessions when they were loaded."""

    def embed(self, prepared: NDArray[Any], deliver: DeliverEmbedded, *, wide: bool) -> None:
        """Embed one input, on all cores if ``wide``.

        ``prepared`` is not read after the return. Raises nothing: errors go to ``deliver``.
        """

    def close(self) -> None:
        """Finish all accepted inputs, then join the backbone's threads, if it has any."""
