"""``python -m support.swapping REPOSITORY``: let the last four revisions take turns, 300 times.

A process of its own: what is resident of one that has run other tests goes up and down by as much
as their allocations left free, and by what their threads still do.
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
from topwork.serving.head import LoadedHead
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

WARM_UP, SWAPS = 50, 250


async def main(repository: Repository) -> dict[str, int]:
    """Return how many heads there are in the end, and by how many bytes memory grew."""
    numbers = repository.revisions("colours")[-4:]
    ones = np.ones((1, tiny.WIDTH), dtype=np.float32)
    registry = Registry(repository, provider="cpu", cores=2, telemetry=Telemetry())
    await registry.start()

    async def swap(turns: int) -> None:
        for turn in range(turns):
            number = numbers[turn % 4]
            repository.set_serving("colours", number, why="test")
            found, _ = await asyncio.gather(registry.snapshot("colours"), registry.refresh())
            found.head.run(ones)
            assert registry.serving("colours").revision == number

    await swap(WARM_UP)
    before = memory()
    await swap(SWAPS)
    growth = memory() - before
    heads = sum(type(one) is LoadedHead for one in gc.get_objects())
    counted = registry.heads_in_memory()
    await registry.aclose()
    return {"growth": growth, "heads": heads, "heads_in_memory": counted}


def memory() -> int:
    """Return the bytes that this process has resident but for those of files."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    (anonymous,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(anonymous.split()[1]) * 1024


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    print(json.dumps(asyncio.run(main(Repository(Path(sys.argv[1]))))))
