"""Backbone on a CPU: one input per core, or all cores for a single one."""

from __future__ import annotations

import math
import time
from typing import Any

from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.kinds import kind_of
from topwork.runtime.agreement import agreement, check_inputs, least
from topwork.runtime.backend import Session, open_session
from topwork.runtime.providers import Provider
from topwork.serving.encoders.backbone import DeliverEmbedded, Embedded
from topwork.serving.encoders.encoder import Check

WARM_RUNS = 5
"""Warm-up runs of each session: the first plans memory, the fastest measures the speed.

They run all probe inputs, so that the check costs no further run.
"""


class CpuBackbone:
    """Backbone in the calling thread, one input per run: on a CPU larger runs are no faster.

    ``narrow`` runs on one core, ``wide`` on all cores.
    """

    def __init__(self, info: BackboneInfo, narrow: Session, wide: Session | None) -> None:
        self._info = info
        self._sessions = {False: narrow, True: wide or narrow}
        one_core, found = _warm(narrow, info)
        all_cores, found_wide = _warm(wide, info) if wide else (math.inf, found)
        self._seconds = one_core, all_cores
        self._check = Check(agreement=least([found, found_wide]), provider=narrow.provider)

    @property
    def info(self) -> BackboneInfo:
        """Metadata from the bundle."""
        return self._info

    @property
    def seconds(self) -> tuple[float, float]:
        """See Backbone."""
        return self._seconds

    @property
    def check(self) -> Check:
        """See Backbone."""
        return self._check

    def embed(self, prepared: NDArray[Any], deliver: DeliverEmbedded, *, wide: bool) -> None:
        """See Backbone."""
        start = time.perf_counter()
        try:
            (embedding,) = self._sessions[wide].run(prepared[None])
        except Exception as error:
            deliver(error)
            return
        deliver(Embedded(embedding=embedding, waited=0.0, computed=time.perf_counter() - start))

    def close(self) -> None:
        """See Backbone; there are no threads to join."""


def open_cpu_backbone(
    info: BackboneInfo, model: bytes, narrow: Session, *, provider: Provider, cores: int
) -> CpuBackbone:
    """Return the backbone of ``model``: ``narrow``, its session on one core, and one on ``cores``.

    With one core there is no other session.
    """
    if cores == 1:
        return CpuBackbone(info, narrow, None)
    wide = open_session(model, output="embedding", provider=provider, threads=cores, spin=True)
    return CpuBackbone(info, narrow, wide)


def _warm(session: Session, info: BackboneInfo) -> tuple[float, float | None]:
    """Return the seconds of the fastest run of one input, and the agreement."""
    kind = kind_of(info.preprocess)
    checked = check_inputs(info)
    probes = kind.probes(kind.latest_probes, info.preprocess) if checked is None else checked
    seconds, embeddings = [], []
    for number in range(max(WARM_RUNS, len(probes))):
        probe = probes[number % len(probes)]
        start = time.perf_counter()
        embeddings += [*session.run(probe[None])]
        seconds.append(time.perf_counter() - start)
    return min(seconds), None if checked is None else agreement(info, embeddings)
