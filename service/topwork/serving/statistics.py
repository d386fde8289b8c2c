"""Statistics of each revision since the start of the server."""

from __future__ import annotations

import time
from dataclasses import dataclass

from topwork.bundle.manifest import Manifest
from topwork.errors import ImageError, NotReady
from topwork.serving.classify_batch import Finished


@dataclass(slots=True)
class RevisionStatistics:
    """Requests of a revision. Seconds are sums over the answered requests; see Timings."""

    answered: int = 0
    failed: int = 0
    """Requests admitted but not answered: deadline exceeded, cancelled, or an error."""
    images: int = 0
    """Images embedded for answered requests."""
    runs: float = 0.0
    """Backbone runs for these images: this revision's share of each micro-batch."""
    queue: float = 0.0
    decode: float = 0.0
    backbone: float = 0.0
    head: float = 0.0
    total: float = 0.0
    failed_total: float = 0.0
    """Seconds of the failed requests."""
    last: float = 0.0
    """Time of the last answer in seconds since 1970; 0: never."""


TRAFFIC_SECONDS = 60.0
"""Raising it protects models from deletion for longer after their last answer."""


class Statistics:
    """Statistics of all revisions with requests. All state belongs to one event loop."""

    def __init__(self) -> None:
        self._statistics: dict[str, dict[int, RevisionStatistics]] = {}

    def of(self, model: str) -> dict[int, RevisionStatistics]:
        """Return the statistics of a model by revision, without revisions that had no request."""
        return self._statistics.get(model, {})

    def check_idle(self, model: str) -> None:
        """Raise NotReady if a model answered a request within TRAFFIC_SECONDS."""
        last = max((statistics.last for statistics in self.of(model).values()), default=0.0)
        seconds = time.time() - last
        if seconds < TRAFFIC_SECONDS:
            raise NotReady(
                f"model {model!r} answered a request {seconds:.0f} s ago; a model is deleted after "
                f"{TRAFFIC_SECONDS:.0f} s without answers, or with force",
                reason="MODEL_IN_USE",
            )

    def answered(self, finished: Finished) -> None:
        """Count an answered request."""
        statistics, timings = self._of(finished.snapshot.manifest), finished.timings
        embedded = [
            outcome for outcome in finished.outcomes if not isinstance(outcome.result, ImageError)
        ]
        statistics.answered += 1
        statistics.images += len(embedded)
        statistics.runs += sum(1 / outcome.images for outcome in embedded)
        statistics.queue += timings.queue
        statistics.decode += timings.decode
        statistics.backbone += timings.backbone
        statistics.head += timings.head
        statistics.total += timings.total
        statistics.last = time.time()

    def failed(self, manifest: Manifest, seconds: float) -> None:
        """Count a request that failed after ``seconds``."""
        statistics = self._of(manifest)
        statistics.failed += 1
        statistics.failed_total += seconds

    def _of(self, manifest: Manifest) -> RevisionStatistics:
        return self._statistics.setdefault(manifest.model, {}).setdefault(
            manifest.revision, RevisionStatistics()
        )
