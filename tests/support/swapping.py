"""Leak check for hot reload: ``python -m support.swapping REPOSITORY`` swaps revisions 300 times.

It is a separate process because the memory and the threads of earlier tests would blur the result.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path

import numpy as np
import structlog

from support import tiny
from topwork.bundle.store import Repository
from topwork.limits import DEFAULT_LIMITS
from topwork.serving.encoders.threads import ThreadEncoder
from topwork.serving.head import LoadedHead
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

WARM_UP, SWAPS = 50, 250


async def main(repository: Repository) -> dict[str, int]:
    """Return the number of heads in the end, and the growth of memory in bytes."""
    numbers = repository.revisions("colours")[-4:]
    embedding = np.ones((1, tiny.WIDTH), dtype=np.float32)
    encoder = ThreadEncoder(provider="cpu", cores=2, limits=DEFAULT_LIMITS)
    registry = Registry(repository, encoder, telemetry=Telemetry())
    await encoder.start(lambda _: None, lambda: None)
    await registry.start()

    async def swap(turns: int) -> None:
        for turn in range(turns):
            number = numbers[turn % 4]
            repository.set_serving("colours", number, why="test")
            snapshot, _ = await asyncio.gather(registry.snapshot("colours"), registry.refresh())
            snapshot.head.run(embedding)
            assert registry.serving("colours").revision == number

    await swap(WARM_UP)
    before = memory()
    await swap(SWAPS)
    growth = memory() - before
    heads = sum(type(item) is LoadedHead for item in gc.get_objects())
    counted = registry.heads_in_memory()
    await encoder.aclose()
    await registry.aclose()
    return {"growth": growth, "heads": heads, "heads_in_memory": counted}


def memory() -> int:
    """Return this process's resident anonymous memory in bytes."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    (anonymous,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(anonymous.split()[1]) * 1024


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    print(json.dumps(asyncio.run(main(Repository(Path(sys.argv[1]))))))
