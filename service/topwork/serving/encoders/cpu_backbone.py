"""A backbone on a CPU: an image a core, or all cores for an image that is alone."""

from __future__ import annotations

import math
import time

import numpy as np
import structlog

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import Pixels
from topwork.runtime.backend import Session, open_session
from topwork.runtime.providers import Provider
from topwork.serving.encoders.backbone import Deliver, Embedded

log = structlog.get_logger(__name__)

WARM_RUNS = 5
"""Runs of each session before it serves: the first plans memory, the fastest tells its speed."""

TRIAL = 64
"""Every so many lone images the session that seems slower is tried."""

STEP = 0.05
"""By how much a run moves what is known of its session's speed."""


class CpuBackbone:
    """Embeds in the calling thread, one image a run: on a CPU larger runs are no faster.

    ``narrow`` runs on one core, ``wide`` on all. Present images run on all cores if one after
    another they end no later than side by side on a core each, as measured: when the backbone is
    opened, and then on every lone image, since what else the machine does may change.
    """

    def __init__(self, info: BackboneInfo, narrow: Session, wide: Session | None) -> None:
        self._info = info
        self._sessions = {False: narrow, True: wide or narrow}
        self._seconds = {False: _warm(narrow, info), True: _warm(wide, info) if wide else math.inf}
        self._lone = 0
        one_core, all_cores = self._seconds.values()
        log.info("backbone", name=info.name, one_core_seconds=one_core, all_cores_seconds=all_cores)

    @property
    def info(self) -> BackboneInfo:
        """What the bundle says of it."""
        return self._info

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """See Backbone."""
        wide = present * self._seconds[True] <= self._seconds[False]
        if present == 1 and math.isfinite(self._seconds[True]):
            self._lone += 1
            wide ^= self._lone % TRIAL == 0
        start = time.perf_counter()
        try:
            (embedding,) = self._sessions[wide].run(pixels[None])
        except Exception as error:
            deliver(error)
            return
        computed = time.perf_counter() - start
        if present == 1:
            # Towards the median: single runs take several times as long where others disturb them.
            self._seconds[wide] *= 1 + STEP if computed > self._seconds[wide] else 1 - STEP
        deliver(Embedded(embedding=embedding, waited=0.0, computed=computed, micro_batch=1))

    def close(self) -> None:
        """See Backbone; it has no threads."""


def open_cpu_backbone(
    info: BackboneInfo, model: bytes, narrow: Session, *, provider: Provider, cores: int
) -> CpuBackbone:
    """Return the backbone of ``narrow``, a session of ``model`` on one core; opens its twin."""
    if cores == 1:
        return CpuBackbone(info, narrow, None)
    wide = open_session(model, output="embedding", provider=provider, threads=cores, spin=True)
    return CpuBackbone(info, narrow, wide)


def _warm(session: Session, info: BackboneInfo) -> float:
    """Return the seconds of the fastest run of one image."""
    crop = info.preprocess.crop
    image = np.zeros((1, crop, crop, 3), dtype=np.uint8)
    seconds = []
    for _ in range(WARM_RUNS):
        start = time.perf_counter()
        session.run(image)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
