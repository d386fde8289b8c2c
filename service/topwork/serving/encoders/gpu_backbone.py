"""Backbone on a GPU, with micro-batches: larger runs have a higher throughput there."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import Pixels
from topwork.runtime.agreement import agreement, check_inputs, least
from topwork.runtime.backend import Session, open_bound_session
from topwork.serving.encoders.backbone import DeliverEmbedded
from topwork.serving.encoders.encoder import Check
from topwork.serving.encoders.microbatch import MicroBatcher, RunBatch
from topwork.serving.encoders.page_locked import page_locked

log = structlog.get_logger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes; other numbers of images are padded, so no other shape is run."""


class GpuBackbone:
    """Backbone in its own thread, which ends when this object is garbage collected."""

    def __init__(self, info: BackboneInfo, batcher: MicroBatcher, check: Check) -> None:
        self._info = info
        self._batcher = batcher
        self._check = check
        weakref.finalize(self, batcher.stop)

    @property
    def info(self) -> BackboneInfo:
        """Metadata from the bundle."""
        return self._info

    @property
    def seconds(self) -> tuple[float, float]:
        """See Backbone; there is no choice of cores."""
        return math.inf, math.inf

    @property
    def check(self) -> Check:
        """See Backbone."""
        return self._check

    def embed(self, pixels: Pixels, deliver: DeliverEmbedded, *, wide: bool) -> None:  # noqa: ARG002  # part of the protocol; unused on a GPU
        """See Backbone. Blocks while both micro-batches, including the running one, are full."""
        self._batcher.put(pixels, deliver)

    def close(self) -> None:
        """See Backbone."""
        self._batcher.close()


def open_gpu_backbone(
    info: BackboneInfo, model: bytes, session: Session, *, sizes: Sequence[int] = SIZES
) -> GpuBackbone:
    """Return the backbone of ``session``, a session of ``model``, with all sizes warmed up."""
    crop = info.image_spec.crop
    run = _open_sessions(info, model, sizes) if session.uses("cuda") else session.run
    shape = (sizes[-1], crop, crop, 3)
    batcher = MicroBatcher(run, (new_buffer(session, shape), new_buffer(session, shape)), sizes)
    check = Check(agreement=_agreement(info, run, sizes), provider=session.provider)
    batcher.start()
    return GpuBackbone(info, batcher, check)


def _agreement(info: BackboneInfo, run: RunBatch, sizes: Sequence[int]) -> float | None:
    """Return the least agreement of all sizes, which may use different algorithms."""
    checked = check_inputs(info)
    if checked is None:
        return None
    images = np.stack(checked)
    # The largest first, as in MicroBatcher.
    return least(
        agreement(info, [*run(images[np.arange(size) % len(images)])])
        for size in (sizes[-1], *sizes[:-1])
    )


def _open_sessions(info: BackboneInfo, model: bytes, sizes: Sequence[int]) -> RunBatch:
    """Return a function that runs a batch of one of ``sizes``, with one session per size."""
    crop, width = info.image_spec.crop, info.width
    sessions = {
        size: open_bound_session(
            model, output="embedding", shape=(size, crop, crop, 3), width=width
        )
        for size in sizes
    }
    return lambda batch: sessions[len(batch)].run(batch)


def new_buffer(session: Session, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return zeroed pixels, page-locked if the session is on a GPU."""
    if session.on_gpu:
        try:
            return page_locked(shape)
        except OSError as error:  # ordinary memory costs one more copy
            log.warning("no page-locked memory", error=str(error))
    return np.zeros(shape, dtype=np.uint8)
