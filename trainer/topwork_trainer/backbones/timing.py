"""Time of a backbone for one input, on one core."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.inputs.kinds import kind_of
from topwork.inputs.spec import InputSpec
from topwork.inputs.text import TextSpec
from topwork.runtime.backend import Session

TIMED_TOKENS = 64
"""Raising it measures the time of longer texts."""

_TIMED_RUNS = 5


def embedding_milliseconds(session: Session, spec: InputSpec) -> float:
    """Return the least CPU time of this thread for an image, TIMED_TOKENS of text, or a window."""
    batch = _example(spec)[None]
    seconds = []
    for _ in range(_TIMED_RUNS):
        start = time.thread_time()
        session.run(batch)
        seconds.append(time.thread_time() - start)
    return 1000 * min(seconds)


def _example(spec: InputSpec) -> NDArray[Any]:
    kind = kind_of(spec)
    example: NDArray[Any] = kind.probes(kind.latest_probes, spec)[0]
    if isinstance(spec, TextSpec):
        return np.resize(example, min(TIMED_TOKENS, spec.max_tokens))
    return example
