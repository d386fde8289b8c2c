"""Benchmark of embedding photos against a bare loop.

    PYTHONPATH=tests python -m benchmarks.embedding [PHOTOS]

PHOTOS is a folder with a folder of photos for each class; without it flowers are rendered. The bare
loop reads, preprocesses and runs the default backbone, with one thread a core; ``embed`` also makes
digests, fingerprints and thumbnails, and preserves order. ``cached`` is ``embed`` with all images
in the cache. They alternate every 200 photos, so that ratios are valid on a busy machine; CPU time
is independent of other load.
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
from topwork.inputs.image_source import ImageSource
from topwork.runtime.backend import open_session
from topwork.runtime.cores import available_cores
from topwork.training.embed import Cache, embed
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

        def run(source: ImageSource) -> None:
            session.run(preprocess(source.read(), info.image_spec)[None])

        def embed_batch(batch: Sequence[ImageSource], cache: Cache | None = None) -> None:
            embed(batch, session, info.image_spec, cores=cores, cache=cache)

        def bare(batch: Sequence[ImageSource]) -> None:
            with ThreadPoolExecutor(cores) as pool:
                for _ in pool.map(run, batch):
                    pass

        with EmbeddingCache(work / "cache") as cache:
            embed_batch(sources, cache.for_backbone(info))
            variants: dict[str, Callable[[Sequence[ImageSource]], None]] = {
                "bare": bare,
                "embed": embed_batch,
                "cached": lambda batch: embed_batch(batch, cache.for_backbone(info)),
            }
            wall: dict[str, list[float]] = {variant: [] for variant in variants}
            cpu: dict[str, list[float]] = {variant: [] for variant in variants}
            for turn, start in enumerate(range(0, ROUNDS * len(sources), SLICE)):
                batch = [sources[(start + at) % len(sources)] for at in range(SLICE)]
                for variant in list(variants) if turn % 2 else reversed(variants):
                    wall_start, cpu_start = time.perf_counter(), time.process_time()
                    variants[variant](batch)
                    wall[variant].append(time.perf_counter() - wall_start)
                    cpu[variant].append(time.process_time() - cpu_start)
    print(
        json.dumps(
            {
                "images": len(sources),
                "cores": cores,
                "images_a_second": {
                    variant: SLICE / statistics.median(times) for variant, times in wall.items()
                },
                "cpu_milliseconds_an_image": {
                    variant: 1000 * statistics.median(times) / SLICE
                    for variant, times in cpu.items()
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
