"""Durations of the stages of a fit."""

from __future__ import annotations

import time

from topwork_trainer.fit.attempts import OnStageProgress


class Stopwatch:
    """Progress callback that measures the seconds of each stage and forwards the progress."""

    def __init__(self, on_progress: OnStageProgress) -> None:
        self._on_progress = on_progress
        self._start = self._last = time.perf_counter()
        self._stage = ""
        self._laps: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Forward the progress of a stage, which begins if it is another one."""
        if stage != self._stage:
            if self._stage:
                self._lap()
            else:
                self._start = self._last = time.perf_counter()
            self._stage = stage
        self._on_progress(stage, done, total)

    def seconds(self) -> dict[str, float]:
        """Return the duration of each stage until now, and ``total``."""
        self._lap()
        return {**self._laps, "total": self._last - self._start}

    def _lap(self) -> None:
        now = time.perf_counter()
        self._laps[self._stage] = self._laps.get(self._stage, 0.0) + now - self._last
        self._last = now
