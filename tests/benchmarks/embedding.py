"""Measure the embedding of photos beside a bare loop that does no more than it must.

    PYTHONPATH=tests python -m benchmarks.embedding [PHOTOS]

PHOTOS is a folder with a folder of photos for each class; without it flowers are rendered. The bare
loop reads, preprocesses and runs the default backbone, with one thread a core; ``embed`` also makes
digests, fingerprints and thumbnails, and keeps order. ``cached`` is ``embed`` with every image in
the cache. They take turns at every 200 photos, so that ratios hold on a busy machine; CPU time says
what ``embed`` costs beyond the bare loop whatever else runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from topwork.bundle.store import Repository
from topwork.inputs.image import preprocess
from topwork.runtime.backend import open_session
from topwork.runtime.cores import available_cores
from topwork.training.embed import Cache, ImageSource, embed
from topwork_trainer import commands
from topwork_trainer.backbones import DEFAULT, BackboneChoice
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.data import scan

ROUNDS = 2
SLICE = 200


def main() -> None:
    """Measure and print one JSON object."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = Path(sys.argv[1]) if len(sys.argv) > 1 else work / "rendered"
        if len(sys.argv) < 2:
            commands.run("topwork_trainer", "demo-data", data)
        sources = scan(data).train
        repository = Repository(work / "repository")
        info = prepare_backbone(repository, BackboneChoice(name=DEFAULT))
        session = open_session(repository.backbone_model(info.digest), output="embedding")
        cores = available_cores()

        def one(source: ImageSource) -> None:
            session.run(preprocess(source.read(), info.preprocess)[None])

        def fully(some: Sequence[ImageSource], cache: Cache | None = None) -> None:
            embed(some, session, info.preprocess, cores=cores, cache=cache)

        def bare(some: Sequence[ImageSource]) -> None:
            with ThreadPoolExecutor(cores) as pool:
                for _ in pool.map(one, some):
                    pass

        with EmbeddingCache(work / "cache") as cache:
            fully(sources, cache.for_backbone(info))
            ways: dict[str, Callable[[Sequence[ImageSource]], None]] = {
                "bare": bare,
                "embed": fully,
                "cached": lambda some: fully(some, cache.for_backbone(info)),
            }
            wall: dict[str, list[float]] = {way: [] for way in ways}
            cpu: dict[str, list[float]] = {way: [] for way in ways}
            for turn, start in enumerate(range(0, ROUNDS * len(sources), SLICE)):
                some = [sources[(start + at) % len(sources)] for at in range(SLICE)]
                for way in list(ways) if turn % 2 else reversed(ways):
                    wall_start, cpu_start = time.perf_counter(), time.process_time()
                    ways[way](some)
                    wall[way].append(time.perf_counter() - wall_start)
                    cpu[way].append(time.process_time() - cpu_start)
    print(
        json.dumps(
            {
                "images": len(sources),
                "cores": cores,
                "images_a_second": {
                    way: SLICE / statistics.median(times) for way, times in wall.items()
                },
                "cpu_milliseconds_an_image": {
                    way: 1000 * statistics.median(times) / SLICE for way, times in cpu.items()
                },
                "embed_to_bare": _ratio(wall["bare"], wall["embed"]),
                "embed_to_bare_by_cpu": _ratio(cpu["bare"], cpu["embed"]),
            },
            indent=1,
        )
    )


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


if __name__ == "__main__":
    main()
