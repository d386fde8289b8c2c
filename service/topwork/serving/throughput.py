"""Throughput estimate, measured while images wait."""

from __future__ import annotations

WINDOW = 0.1
"""Smallest number of seconds of a measurement; raising it makes the estimate slower to adapt."""

MIN_ENDS = 8
"""Smallest number of ends in a measurement: a micro-batch ends many images at once."""


class ThroughputEstimate:
    """Seconds between the ends of two images while others wait, for any number of threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """Estimate of the seconds per image; initially the caller's guess."""
        self._since: float | None = None
        self._ends = 0

    def end(self, now: float, *, backlog: bool) -> None:
        """Record that an image ended at ``now`` (seconds); ``backlog``: other images waited."""
        if not backlog:
            self._since = None
        elif self._since is None:
            self._since, self._ends = now, 0
        else:
            self._ends += 1
            if self._ends >= MIN_ENDS and now - self._since >= WINDOW:
                self.seconds += 0.5 * ((now - self._since) / self._ends - self.seconds)
                self._since, self._ends = now, 0
