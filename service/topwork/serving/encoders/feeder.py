"""Feeder of a GPU's micro-batches: a thread, since they block while they are full."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from topwork.serving.encoders.decoding import cancelled
from topwork.serving.encoders.encoder import Deliver
from topwork.serving.encoders.pipeline import Embeddable


@dataclass(frozen=True, slots=True)
class Work:
    """Decoded item that waits for its micro-batch."""

    embeddable: Embeddable
    is_cancelled: Callable[[], bool]
    release: Callable[[], None]
    """Called when the pixels are no longer needed."""


class Feeder:
    """Thread that passes decoded items to their backbones, in order."""

    def __init__(self, deliver: Deliver) -> None:
        """``deliver`` gets the results, in any thread."""
        self._deliver = deliver
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, work: Work) -> None:
        """Take an item. Never blocks."""
        self._queue.put(work)

    def close(self, seconds: float) -> bool:
        """End the thread after the items that it has; return True if that took no longer."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if work.is_cancelled():
                self._deliver(cancelled(work.embeddable.decoded.item))
            else:
                work.embeddable.embed(self._deliver, wide=True)
            work.release()
