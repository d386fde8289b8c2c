"""A backbone on a GPU: larger runs are faster there, so its images go in micro-batches."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import Pixels
from topwork.runtime.backend import Session, open_bound_session
from topwork.serving.encoders.backbone import Deliver
from topwork.serving.encoders.microbatch import MicroBatcher, RunBatch
from topwork.serving.encoders.page_locked import page_locked

log = structlog.get_logger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Images in a run. What lies between is padded: no other shape is ever run."""


class GpuBackbone:
    """Embeds in a thread of its own, which ends when nobody holds the backbone any more."""

    def __init__(self, info: BackboneInfo, batcher: MicroBatcher) -> None:
        self._info = info
        self._batcher = batcher
        weakref.finalize(self, batcher.stop)

    @property
    def info(self) -> BackboneInfo:
        """What the bundle says of it."""
        return self._info

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:  # noqa: ARG002  # the protocol's; a GPU needs no count
        """See Backbone. Blocks while two micro-batches are full, the one at work among them."""
        self._batcher.put(pixels, deliver)

    def close(self) -> None:
        """See Backbone."""
        self._batcher.close()


def open_gpu_backbone(
    info: BackboneInfo, model: bytes, session: Session, *, sizes: Sequence[int] = SIZES
) -> GpuBackbone:
    """Return the backbone that ``session``, of ``model``, runs, with every size warmed."""
    crop = info.preprocess.crop
    run = _bound(info, model, sizes) if session.uses("cuda") else session.run
    shape = (sizes[-1], crop, crop, 3)
    batcher = MicroBatcher(run, (new_buffer(session, shape), new_buffer(session, shape)), sizes)
    batcher.start()
    return GpuBackbone(info, batcher)


def _bound(info: BackboneInfo, model: bytes, sizes: Sequence[int]) -> RunBatch:
    """Return what runs a batch of one of ``sizes``: a session of its own for each."""
    crop, width = info.preprocess.crop, info.width
    sessions = {
        size: open_bound_session(
            model, output="embedding", shape=(size, crop, crop, 3), width=width
        )
        for size in sizes
    }
    return lambda batch: sessions[len(batch)].run(batch)


def new_buffer(session: Session, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return zeroed pixels, in memory that the session's device copies from at full speed."""
    if session.on_gpu:
        try:
            return page_locked(shape)
        except OSError as error:  # slower by one copy, and right all the same
            log.warning("no page-locked memory", error=str(error))
    return np.zeros(shape, dtype=np.uint8)
