"""Choice between one core and all cores for an image."""

from __future__ import annotations

import math

import structlog

log = structlog.get_logger(__name__)

TRIAL_INTERVAL = 64
"""Number of single images after which the slower way is measured again."""

STEP = 0.05
"""Relative change of the estimated seconds per run; raising it adapts faster, with more noise."""


class CoreChoice:
    """Choice of a backbone's session: ``wide`` uses all cores for one image, the other one core.

    Images use all cores if this sequence is estimated to finish no later than parallel runs on one
    core each. The estimate is measured when the backbone is loaded, and updated with every single
    image, since the machine's load changes.
    """

    def __init__(self, name: str, one_core: float, all_cores: float) -> None:
        """Take a backbone's name, and the seconds of its runs; see Backbone.seconds."""
        self._seconds = {False: one_core, True: all_cores}
        self._single = 0
        if math.isfinite(one_core):
            log.info("backbone", name=name, one_core_seconds=one_core, all_cores_seconds=all_cores)

    def wide(self, present: int) -> bool:
        """Return the choice for an image, while ``present`` wait or are in progress."""
        wide = present * self._seconds[True] <= self._seconds[False]
        if present == 1 and math.isfinite(self._seconds[True]):
            self._single += 1
            wide ^= self._single % TRIAL_INTERVAL == 0
        return wide

    def measured(self, wide: bool, seconds: float) -> None:
        """Take the seconds of a single image's run."""
        # Tracks the median: other load makes some runs several times slower.
        self._seconds[wide] *= 1 + STEP if seconds > self._seconds[wide] else 1 - STEP
