"""Backbone on a CPU: one image per core, or all cores for a single image."""

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
"""Warm-up runs of each session: the first plans memory, the fastest measures the speed."""

TRIAL_INTERVAL = 64
"""Number of single images after which the slower session is measured again."""

STEP = 0.05
"""Relative change of the estimated seconds per run; raising it adapts faster, with more noise."""


class CpuBackbone:
    """Encoder in the calling thread, one image per run: on a CPU larger runs are no faster.

    ``narrow`` runs on one core, ``wide`` on all cores. Images use all cores if this sequence is
    estimated to finish no later than parallel runs on one core each. The estimate is measured when
    the backbone is opened, and updated with every single image, since the machine's load changes.
    """

    def __init__(self, info: BackboneInfo, narrow: Session, wide: Session | None) -> None:
        self._info = info
        self._sessions = {False: narrow, True: wide or narrow}
        self._seconds = {False: _warm(narrow, info), True: _warm(wide, info) if wide else math.inf}
        self._single = 0
        one_core, all_cores = self._seconds.values()
        log.info("backbone", name=info.name, one_core_seconds=one_core, all_cores_seconds=all_cores)

    @property
    def info(self) -> BackboneInfo:
        """Metadata from the bundle."""
        return self._info

    def embed(self, pixels: Pixels, deliver: Deliver, *, present: int) -> None:
        """See Backbone."""
        wide = present * self._seconds[True] <= self._seconds[False]
        if present == 1 and math.isfinite(self._seconds[True]):
            self._single += 1
            wide ^= self._single % TRIAL_INTERVAL == 0
        start = time.perf_counter()
        try:
            (embedding,) = self._sessions[wide].run(pixels[None])
        except Exception as error:
            deliver(error)
            return
        computed = time.perf_counter() - start
        if present == 1:
            # Tracks the median: other load makes some runs several times slower.
            self._seconds[wide] *= 1 + STEP if computed > self._seconds[wide] else 1 - STEP
        deliver(Embedded(embedding=embedding, waited=0.0, computed=computed, micro_batch=1))

    def close(self) -> None:
        """See Backbone; there are no threads to join."""


def open_cpu_backbone(
    info: BackboneInfo, model: bytes, narrow: Session, *, provider: Provider, cores: int
) -> CpuBackbone:
    """Return the backbone of ``model``: ``narrow``, its session on one core, and one on all."""
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
