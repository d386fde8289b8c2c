"""Upper bound of this machine: decoding and ONNX Runtime in a bare loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.bare import Bare


class Ceiling:
    """Maximum throughput and minimum latency of a model in process."""

    def __init__(self, directory: Path, photos: Sequence[bytes], *, cores: int) -> None:
        self._photos = photos
        self._cores = cores
        self._parallel = Bare(directory, threads=1)
        self._lone = Bare(directory, threads=cores, spin=True)

    def throughput(self, seconds: float) -> tuple[float, float]:
        """Return images/s with a thread for each core, each on its own image, and the CPU share.

        The CPU share is below 1 if other processes used the cores.
        """
        cpu, begin = time.process_time(), time.perf_counter()
        end = begin + seconds

        def loop(offset: int) -> float:
            start, done = time.perf_counter(), 0
            while time.perf_counter() < end:
                self._parallel.embed(
                    self._parallel.decode(self._photos[(offset + done) % len(self._photos)])
                )
                done += 1
            return done / (time.perf_counter() - start)

        with ThreadPoolExecutor(self._cores) as pool:
            rate = sum(pool.map(loop, range(self._cores)))
        busy = (time.process_time() - cpu) / (time.perf_counter() - begin) / self._cores
        return rate, busy

    def lone_ms(self, seconds: float) -> float:
        """Return the median milliseconds of decoding and embedding one image with all cores."""
        end, times, done = time.perf_counter() + seconds, list[float](), 0
        while (start := time.perf_counter()) < end:
            self._lone.embed(self._lone.decode(self._photos[done % len(self._photos)]))
            times.append(time.perf_counter() - start)
            done += 1
        return 1e3 * statistics.median(times)

    def top5(self, photo: bytes) -> list[list[float]]:
        """Return the correct answer of a server of this model; see ``Bare.top5``."""
        return self._parallel.top5(photo)
