"""Statistics of each revision since the server started."""

from __future__ import annotations

import time
from dataclasses import dataclass

from topwork.bundle.manifest import Manifest
from topwork.serving.classify_batch import Finished
from topwork.serving.encoders.backbone import Embedded


@dataclass(slots=True)
class RevisionStatistics:
    """A revision's requests. Seconds are sums over the answered ones; see Timings."""

    answered: int = 0
    failed: int = 0
    """Those that were let in and not answered: the time was over, the caller left, an error."""
    images: int = 0
    """That were embedded for answers."""
    runs: float = 0.0
    """Of the backbone for them: of each micro-batch this revision's share."""
    queue: float = 0.0
    decode: float = 0.0
    backbone: float = 0.0
    head: float = 0.0
    total: float = 0.0
    failed_total: float = 0.0
    """Seconds of those that failed."""
    last: float = 0.0
    """When the last answer was made, in seconds since 1970; 0: never."""


class Statistics:
    """Counts of all revisions that were asked. Belongs to one event loop."""

    def __init__(self) -> None:
        self._done: dict[str, dict[int, RevisionStatistics]] = {}

    def of(self, model: str) -> dict[int, RevisionStatistics]:
        """Return what the revisions of a model that were asked have done."""
        return self._done.get(model, {})

    def answered(self, finished: Finished) -> None:
        """Count a request that was answered."""
        done, timings = self._of(finished.snapshot.manifest), finished.timings
        good = [one.result for one in finished.outcomes if isinstance(one.result, Embedded)]
        done.answered += 1
        done.images += len(good)
        done.runs += sum(1 / one.micro_batch for one in good)
        done.queue += timings.queue
        done.decode += timings.decode
        done.backbone += timings.backbone
        done.head += timings.head
        done.total += timings.total
        done.last = time.time()

    def failed(self, manifest: Manifest, seconds: float) -> None:
        """Count a request that failed after ``seconds``."""
        done = self._of(manifest)
        done.failed += 1
        done.failed_total += seconds

    def _of(self, manifest: Manifest) -> RevisionStatistics:
        return self._done.setdefault(manifest.model, {}).setdefault(
            manifest.revision, RevisionStatistics()
        )
