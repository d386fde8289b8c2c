"""Benchmark of the stages of AddClass in the worker, for one or several source trees.

    PYTHONPATH=tests python -m benchmarks.relearning REPOSITORY MODEL PHOTOS [--photos 30]
        [--tree DIRECTORY ...] [--rounds 5]

Adds the first photos of the folder PHOTOS to MODEL in a copy of REPOSITORY, in a process of each
tree by turns, since the speed of a shared machine varies. Prints, for each tree, the median and
least wall and processor milliseconds of each stage. Stages contain others: "solve" has "read",
"learn", "audit", "compare" and "publish"; "learn" has "choose".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from topwork.bundle.store import Repository
from topwork.changes import retrain
from topwork.changes.jobs import Job, Upload
from topwork.learning import gate
from topwork.learning import learn as learning
from topwork.runtime.cores import available_cores

REPEATS = 3
"""Changes in each process; the first is not counted."""

Times = dict[str, list[tuple[float, float]]]
"""Wall and processor seconds of each stage."""


def main() -> None:
    """Measure the trees by turns and print a table for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=30)
    parser.add_argument("--tree", type=Path, action="append", help="default: this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(
            json.dumps(
                measure(arguments.repository, arguments.model, arguments.folder, arguments.photos)
            )
        )
        return
    trees = arguments.tree or [Path(__file__).parents[2]]
    found: dict[Path, Times] = {tree: defaultdict(list) for tree in trees}
    for _ in range(arguments.rounds):
        for tree in trees:
            printed = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one"],
                env={**os.environ, "PYTHONPATH": str(tree / "service")},
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
            for stage, times in json.loads(printed).items():
                found[tree][stage] += times
    for tree, stages in found.items():
        print(f"{tree}\n  {'stage':10} {'wall':>8} {'least':>8} {'processor':>10} {'least':>8}")
        for stage, times in stages.items():
            wall, cpu = ([1000 * seconds for seconds in row] for row in zip(*times, strict=True))
            print(
                f"  {stage:10} {statistics.median(wall):8.0f} {min(wall):8.0f}"
                f" {statistics.median(cpu):10.0f} {min(cpu):8.0f}"
            )


def measure(repository: Path, model: str, folder: Path, photos: int) -> Times:
    """Return the times of each stage of changes in this process, without the first change."""
    found: Times = {}
    parts: tuple[tuple[Any, str], ...] = (
        (retrain.Trainer, "embed"),
        (retrain.Trainer, "solve"),
        (retrain.Trainer, "serve"),
        (retrain.Trainer, "_read"),
        (retrain, "learn"),
        (learning, "choose"),
        (retrain, "audit_exemplars"),
        (gate, "compare"),
        (retrain, "publish"),
    )
    for owner, name in parts:
        _measure_calls(owner, name, found)
    with tempfile.TemporaryDirectory() as work:
        root = Path(shutil.copytree(repository, work, dirs_exist_ok=True))
        (root / "images").mkdir(exist_ok=True)
        uploads = []
        for path in sorted(folder.iterdir())[:photos]:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copyfile(path, root / "images" / digest)
            uploads.append(Upload(name=path.name, digest=digest))
        store = Repository(root)
        trainer, serving = retrain.Trainer(store, cores=available_cores()), store.serving(model)
        for number in range(REPEATS):
            job = Job(
                kind="add_class",
                model=model,
                label="new",
                accepted=time.time(),
                uploads=tuple(uploads),
            )
            new = trainer.embed(job, lambda *_, **__: None)
            candidate = trainer.solve(job, new, f"operation-{number}")
            trainer.serve(job, candidate.result.revision, f"operation-{number}")
            store.set_serving(model, serving, why="rollback")
    return {stage: times[1:] for stage, times in found.items()}


def _measure_calls(owner: Any, name: str, found: Times) -> None:
    """Replace a function by one that also adds its times to ``found``."""
    function, stage = getattr(owner, name), name.strip("_").removesuffix("_exemplars")

    def timed(*arguments: Any, **options: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            times = time.perf_counter() - wall, time.process_time() - cpu
            found.setdefault(stage, []).append(times)

    setattr(owner, name, timed)


if __name__ == "__main__":
    main()
