"""Benchmark of ``topwork.batch`` and ``embed --engine ray`` beside the same work in one process.

    PYTHONPATH=tests .venv-batch/bin/python -m benchmarks.batch REPOSITORY MODEL PHOTOS

PHOTOS is a folder with a folder of photos for each class. Needs Ray (`make batch` makes the
environment). ``open`` is ``topwork.open`` with a thread per core; ``classifier`` is the same photos
in batches of one process with as many threads; ``ray`` is Ray Data with a task per core, in a
cluster that runs already. They alternate, so that ratios are valid on a busy machine. The embedding
engines alternate in the same way. Prints one JSON object with photos a second, medians of ROUNDS.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

import topwork
from topwork.batch import Classifier
from topwork.runtime.cores import available_cores
from topwork_trainer.embedding.embed import EmbedConfig, EngineName, embed_photos

ROUNDS = 5
BATCH = 64
PART = 64


def main() -> None:
    """Measure and print one JSON object."""
    repository, model, photos = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).absolute()
    paths = sorted(map(str, photos.glob("*/*.*")))
    cores = available_cores()
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    opened = topwork.open(repository, model, threads=cores)
    threaded = Classifier(repository, model, column="path", threads=cores)
    single = Classifier(repository, model, column="path", drop=["path"])
    rows = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=2 * cores)
    answers: dict[str, list[Any]] = {}

    def by_open() -> None:
        results = opened.predict([Path(path) for path in paths])
        answers["open"] = [result.predictions[0].probability for result in results]

    def by_classifier() -> None:
        batches = [{"path": paths[at : at + BATCH]} for at in range(0, len(paths), BATCH)]
        found = [row[0] for batch in batches for row in threaded(batch)["probabilities"]]
        answers["classifier"] = found

    def by_ray() -> None:
        found = rows.map_batches(single, batch_size=BATCH).take_all()
        answers["ray"] = [row["probabilities"][0] for row in found]

    with tempfile.TemporaryDirectory() as temporary:

        def embed(engine: EngineName) -> None:
            out = Path(temporary) / engine
            shutil.rmtree(out, ignore_errors=True)
            config = EmbedConfig(
                data=photos,
                out=out,
                engine=engine,
                model=model,
                repository=repository,
                part_photos=PART,
            )
            embed_photos(config, lambda _: lambda _: None)

        found = measure(
            {
                "open": by_open,
                "classifier": by_classifier,
                "ray": by_ray,
                "embed_local": lambda: embed("local"),
                "embed_ray": lambda: embed("ray"),
            },
            len(paths),
        )
        local, by_tasks = (
            [part.read_bytes() for part in sorted((Path(temporary) / name).glob("*.parquet"))]
            for name in ("local", "ray")
        )
    assert sorted(answers["ray"]) == sorted(answers["open"]), "the answers differ"
    assert answers["classifier"] == answers["open"], "the answers differ"
    assert by_tasks == local, "the parts differ"
    ratios = {
        "classifier_to_open": found["classifier"] / found["open"],
        "ray_to_open": found["ray"] / found["open"],
        "embed_ray_to_local": found["embed_ray"] / found["embed_local"],
    }
    facts = {"photos": len(paths), "cores": cores, "load": os.getloadavg()[0]}
    print(json.dumps({**facts, "photos_per_second": found, "ratios": ratios}, indent=1))


def measure(work: dict[str, Callable[[], None]], photos: int) -> dict[str, float]:
    """Return the median number of photos a second of each, after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(ROUNDS + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: photos / statistics.median(laps) for name, laps in seconds.items()}


if __name__ == "__main__":
    main()
