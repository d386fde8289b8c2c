"""Throughput estimate, measured while images wait: what a new image has to expect."""

from __future__ import annotations

WINDOW = 0.1
"""Seconds over which ends are counted."""

LEAST = 8
"""Ends that a window has at least: micro-batches end many images at once."""


class ThroughputEstimate:
    """Seconds between the ends of two images while others wait, whatever works on them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """The estimate; at first what the caller guessed."""
        self._since: float | None = None
        self._ends = 0

    def end(self, now: float, *, backlog: bool) -> None:
        """Note that an image ended at ``now`` (seconds); ``backlog``: others waited."""
        if not backlog:
            self._since = None
        elif self._since is None:
            self._since, self._ends = now, 0
        else:
            self._ends += 1
            if self._ends >= LEAST and now - self._since >= WINDOW:
                self.seconds += 0.5 * ((now - self._since) / self._ends - self.seconds)
                self._since, self._ends = now, 0
