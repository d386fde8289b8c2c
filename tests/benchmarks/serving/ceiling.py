"""What this machine can do at best: decoding and ONNX Runtime in a loop, with nothing around."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.bare import Bare


class Ceiling:
    """The two ends of one model: all cores on many images, and all cores on one."""

    def __init__(self, directory: Path, photos: Sequence[bytes], *, cores: int) -> None:
        self._photos = photos
        self._cores = cores
        self._many = Bare(directory, threads=1)
        self._one = Bare(directory, threads=cores, spin=True)

    def throughput(self, seconds: float) -> tuple[float, float]:
        """Return images/s of one thread a core, each on an image of its own, and how busy it was.

        The latter is the share of the cores' time that it had: below 1 others had the rest.
        """
        cpu, begin = time.process_time(), time.perf_counter()
        end = begin + seconds

        def loop(offset: int) -> float:
            start, done = time.perf_counter(), 0
            while time.perf_counter() < end:
                self._many.embed(
                    self._many.decode(self._photos[(offset + done) % len(self._photos)])
                )
                done += 1
            return done / (time.perf_counter() - start)

        with ThreadPoolExecutor(self._cores) as pool:
            rate = sum(pool.map(loop, range(self._cores)))
        busy = (time.process_time() - cpu) / (time.perf_counter() - begin) / self._cores
        return rate, busy

    def lone_ms(self, seconds: float) -> float:
        """Return the median milliseconds of one image at a time, decoded too, on all cores."""
        end, times, done = time.perf_counter() + seconds, list[float](), 0
        while (start := time.perf_counter()) < end:
            self._one.embed(self._one.decode(self._photos[done % len(self._photos)]))
            times.append(time.perf_counter() - start)
            done += 1
        return 1e3 * statistics.median(times)

    def top5(self, photo: bytes) -> list[list[float]]:
        """Return what any server of this model should answer; see ``Bare.top5``."""
        return self._many.top5(photo)
