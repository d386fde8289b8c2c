"""Comparison of an int8 backbone with its fp32 one, and the gate that decides which to use."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.manifest import PrecisionGate
from topwork_trainer.fit.paired import paired

MOST_LOSS = 0.5
"""Raising it accepts int8 with a larger loss of accuracy, in percentage points."""

LEAST_SPEED = 1.05
"""Raising it demands more speed of int8; a smaller ratio to fp32 can be noise of the clock."""

Embed = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Maps prepared inputs (N, ...), such as images, to embeddings (N, D)."""


def speed_ratio(
    fp32: Embed,
    int8: Embed,
    prepared: NDArray[Any],
    *,
    seconds: float = 1.5,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Return the ratio of fp32's to int8's time to embed an input; both must use one thread.

    The median over at least five pairs of runs, fp32 and int8 first in turns, for ``seconds`` after
    a warm-up. Each run is timed by the CPU time of this thread: on a machine with a load of 2 to 3
    times its cores that gave 2.00 to 2.04 where the wall clock gave 1.38 to 1.89.
    """
    batch = np.ascontiguousarray(prepared[None])

    def measure(run: Embed) -> float:
        start = clock()
        run(batch)
        return clock() - start

    measure(fp32)  # the first run allocates memory
    measure(int8)
    ratios: list[float] = []
    until = time.monotonic() + seconds
    while len(ratios) < 5 or time.monotonic() < until:
        if len(ratios) % 2:
            slow, fast = measure(fp32), measure(int8)
        else:
            fast, slow = measure(int8), measure(fp32)
        ratios.append(slow / fast)
    return float(np.median(ratios))


def gate(
    fp32_right: NDArray[np.bool_], int8_right: NDArray[np.bool_], *, speed_ratio: float
) -> PrecisionGate:
    """Decide whether to use int8, from whether each head was right on each of N images, both (N,).

    The heads must be judged on the same folds. int8 is used if it loses at most MOST_LOSS points
    and is at least LEAST_SPEED times as fast on this machine.
    """
    difference = paired(int8_right, fp32_right)
    loss, low, high = (-100 * gain for gain in (difference.gain, difference.high, difference.low))
    images = difference.images
    cost = f"loses {loss:.2f} points of accuracy ({low:.2f} to {high:.2f}) on {images} images"
    if loss > MOST_LOSS:
        taken, why = False, f"int8 {cost}; the limit is {MOST_LOSS}"
    elif not speed_ratio >= LEAST_SPEED:
        taken, why = False, f"int8 is only {speed_ratio:.2f} times as fast; required: {LEAST_SPEED}"
    else:
        taken, why = True, f"int8 is {speed_ratio:.2f} times as fast and {cost}"
    return PrecisionGate(
        taken=taken,
        loss_points=loss,
        loss_low=low,
        loss_high=high,
        speed_ratio=speed_ratio,
        why=why,
    )
