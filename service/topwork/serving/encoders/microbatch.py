"""Micro-batches: images that arrive during a run form the next run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np
import structlog
from numpy.typing import NDArray

from topwork.errors import Unavailable
from topwork.inputs.image import Pixels
from topwork.serving.encoders.backbone import DeliverEmbedded, Embedded
from topwork.serving.encoders.encoder import MicroBatch

log = structlog.get_logger(__name__)

RunBatch = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""(N, H, W, 3) uint8 -> (N, D) float32, rows in input order. Only called in one thread."""


JOIN_SECONDS = 5.0
"""Raising it lets close() wait longer for a run in progress, for example on a GPU that hangs."""


class MicroBatcher:
    """Double-buffered batcher: one buffer runs while images are put into the other.

    A run starts as soon as the previous run has ended and at least one image waits, and includes
    all waiting images: no image waits for a batch to fill. One thread makes all runs, since runs of
    one session on a GPU share a stream. Each accepted image gets exactly one result.
    """

    def __init__(
        self,
        run: RunBatch,
        buffers: tuple[NDArray[np.uint8], NDArray[np.uint8]],
        sizes: Sequence[int],
    ) -> None:
        """Take buffers of ``sizes[-1]`` slots each; ``sizes`` are ascending."""
        self._run = run
        self._sizes = sizes
        self._shape = buffers[0].shape[1:]
        self._filling, self._other = (_Batch(pixels) for pixels in buffers)
        self._lock = threading.Lock()
        self._capacity = threading.Condition(self._lock)
        self._written = threading.Condition(self._lock)
        self._closed = False
        # True: the filling buffer has its first image; False: end. Garbage collection may call
        # stop() in any thread, at any line: only SimpleQueue is reentrant.
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread and wait until it has run every size. Raises the error of a run."""
        warmed: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run_forever, args=(warmed,), name="micro-batches", daemon=True
        )
        self._thread.start()
        warmed.result()

    def put(self, pixels: Pixels, deliver: DeliverEmbedded) -> None:
        """Take a copy of one image (H, W, 3). Blocks while both buffers are full.

        Delivers the embedding, or the error: that of the run, Unavailable after close(), or
        ValueError if ``pixels`` is not a uint8 image of the buffers' size.
        """
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            actual = f"{pixels.dtype} {pixels.shape}"
            deliver(ValueError(f"the image is {actual}; the backbone takes uint8 {self._shape}"))
        elif (slot := self._reserve(deliver)) is None:
            deliver(Unavailable("the server is stopping"))
        else:
            batch, row = slot
            batch.pixels[row] = pixels  # outside the lock: callers write in parallel
            with self._lock:
                batch.unwritten -= 1
                if not batch.unwritten:
                    self._written.notify()

    def stop(self) -> None:
        """End the thread after the accepted images. Only for a batcher without callers of put()."""
        self._wake.put(False)

    def close(self) -> None:
        """Refuse new images, finish the accepted ones, and join the thread with a timeout."""
        with self._lock:
            self._closed = True
            self._capacity.notify_all()
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)

    def _reserve(self, deliver: DeliverEmbedded) -> tuple[_Batch, int] | None:
        """Return a free row of the filling buffer; None after close()."""
        since = time.perf_counter()
        with self._lock:
            self._capacity.wait_for(lambda: self._closed or not self._filling.full)
            if self._closed:
                return None
            batch, row = self._filling, len(self._filling.waiting)
            batch.waiting.append((deliver, since))
            batch.unwritten += 1
            if row == 0:
                self._wake.put(True)
            return batch, row

    def _run_forever(self, warmed: Future[None]) -> None:
        try:
            # Largest first: its memory is reused by all, and TensorRT builds for the widest range.
            for size in (self._sizes[-1], *self._sizes[:-1]):
                self._run(self._filling.pixels[:size])
        except Exception as error:
            warmed.set_exception(error)
            return
        warmed.set_result(None)
        while self._wake.get():
            self._answer(self._swap_buffers())

    def _swap_buffers(self) -> _Batch:
        """Return the filled buffer after swapping it with the other buffer."""
        with self._lock:
            batch = self._filling
            self._filling, self._other = self._other, batch
            self._capacity.notify_all()
            self._written.wait_for(lambda: not batch.unwritten)
            return batch

    def _answer(self, batch: _Batch) -> None:
        count = len(batch.waiting)
        start = time.perf_counter()
        rows = self._embed(batch.pixels, count)
        run = MicroBatch(start=start, seconds=time.perf_counter() - start, images=count)
        computed = run.seconds / count
        for row, (deliver, since) in enumerate(batch.waiting):
            try:
                if isinstance(rows, Exception):
                    deliver(rows)
                else:
                    waited = start - since
                    embedded = Embedded(
                        embedding=rows[row],
                        waited=waited,
                        computed=computed,
                        run=run,
                    )
                    deliver(embedded)
            except Exception:  # the other images must still get their results
                log.exception("an answer could not be delivered; this is a bug")
        batch.waiting.clear()

    def _embed(self, pixels: NDArray[np.uint8], count: int) -> NDArray[np.float32] | Exception:
        """Return the embeddings (at least ``count``, D) of the first images, or the error."""
        size = next(size for size in self._sizes if size >= count)
        try:
            rows = self._run(pixels[:size])
        except Exception as error:
            return error
        if len(rows) != size:
            return ValueError(f"the backbone gave {len(rows)} rows for {size} images")
        return rows


class _Batch:
    """Buffer with the callbacks of the images in its first slots."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        """(S, H, W, 3), S slots"""
        self.waiting: list[tuple[DeliverEmbedded, float]] = []
        """Callback and arrival time of each row."""
        self.unwritten = 0
        """Number of slots that are reserved but not written yet."""

    @property
    def full(self) -> bool:
        return len(self.waiting) == len(self.pixels)
