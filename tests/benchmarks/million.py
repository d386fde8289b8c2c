"""Benchmark of a fit and of AddClass on up to a million exemplars, with their peak memory.

    PYTHONPATH=tests python -m benchmarks.million --images 1000000 --classes 1000
        [--width 1280] [--work DIRECTORY] [--tree DIRECTORY]

Makes embeddings, writes them as shards into a repository, and measures in a process each, with two
threads: ``fit``, everything after embedding, on all classes except the last, and ``add``, AddClass
of the last class, from shards on disk to a serving revision. Prints the wall and processor seconds
of each stage and the peak memory: ``peak_gib`` is all resident memory, ``own_gib`` without the
pages of mapped files, which the kernel drops if memory is short. ``gemm_seconds`` is the least time
that the products of a ridge regression's Gram matrix (N x D x D) take on two threads, measured in
the same process before and after the stages: ``ratio`` is the stage's time by that. The repository
takes 5.2 GB for a million embeddings of 1,280 numbers. ``--tree`` measures another source tree on
the same shards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork.bundle.exemplars import merge, shard_rows
from topwork.bundle.manifest import BackboneInfo, ShardRef
from topwork.bundle.recipe import Recipe
from topwork.bundle.shards import Shard
from topwork.bundle.store import Repository
from topwork.changes import retrain
from topwork.changes.jobs import Job
from topwork.changes.new_exemplars import NewExemplars
from topwork.inputs.preprocess import PreprocessSpec
from topwork.learning import gate
from topwork.learning import learn as learning
from topwork.learning.audit import audit_exemplars
from topwork.limits import InputLimits
from topwork.report.content import Making
from topwork.training.publish import publish

SEED, THREADS = 0, 2
DIRECTIONS = 64
"""Directions of variation that all classes share."""
GEMM_ROWS = 16_384
TRIALS = 3

Row = dict[str, Any]


def main() -> None:
    """Make the shards, then measure each task in its own process and print a JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=1_280)
    parser.add_argument("--work", type=Path, help="directory to keep, and to use again")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps({"fit": measure_fit, "add": measure_add}[arguments.one](arguments.work)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        if not (work / "shards.json").exists():
            prepare(work, arguments.images, arguments.classes, arguments.width)
        for task in ("fit", "add"):
            printed = subprocess.run(
                [sys.executable, __file__, "--one", task, "--work", str(work)],
                env={**os.environ, "PYTHONPATH": str(arguments.tree / "service")},
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
            print(task, json.dumps(json.loads(printed), indent=1), flush=True)


def prepare(work: Path, images: int, classes: int, width: int) -> None:
    """Store a backbone and one shard a class, a class at a time."""
    store = Repository(work)
    content = b"placeholder of a backbone"
    digest = hashlib.sha256(content).hexdigest()
    info = BackboneInfo(
        name="synthetic",
        identity="synthetic",
        digest=digest,
        preprocess=PreprocessSpec(resize=224, crop=224),
        width=width,
        precision="fp32",
        licence="",
        source="",
        weights_digest=digest,
        parity_error=0.0,
        versions={},
    )
    store.put_backbone(content, info)
    rng = np.random.default_rng(SEED)
    shared = rng.standard_normal((DIRECTIONS, width), dtype=np.float32) * np.float32(0.05)
    counts = np.diff(np.linspace(0, images, classes + 1).astype(int))
    refs = [
        (f"class {target:04}", store.put_shard(make_shard(target, int(count), shared)))
        for target, count in enumerate(counts)
    ]
    (work / "shards.json").write_text(json.dumps(refs))


def make_shard(target: int, count: int, shared: NDArray[np.float32]) -> Shard:
    """Return the exemplars of one class: its mean, variation that all share, and noise.

    Embeddings are non-negative like those of a backbone. Fingerprints are random.
    """
    rng = np.random.default_rng([SEED, target])
    width = shared.shape[1]
    mean = rng.standard_normal(width, dtype=np.float32) * np.float32(0.12)
    varied = rng.standard_normal((count, len(shared)), dtype=np.float32) @ shared
    noise = rng.standard_normal((count, width), dtype=np.float32)
    digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    return Shard(
        embeddings=np.abs(mean + varied + np.float32(0.5) * noise + np.float32(0.5)),
        digests=digests[np.lexsort(digests.T[::-1])],
        fingerprints=rng.integers(0, 256, (count, 32), dtype=np.uint8),
        contents=np.zeros((count, 32), dtype=np.uint8),
        seen=np.zeros(count, dtype=bool),
        names=[f"{target:04}/{row:06}.jpg" for row in range(count)],
        thumbnails=[b""] * count,
        groups=np.zeros((count, 16), dtype=np.uint8),
    )


def measure_fit(work: Path) -> Row:
    """Measure a fit of all classes except the last, which then serve."""
    store, refs = Repository(work), json.loads((work / "shards.json").read_text())
    shards = tuple(ShardRef(label=label, digest=digest) for label, digest in refs[:-1])
    (backbone,) = store.stored("backbones")
    digests = [ref.digest for ref in shards]
    with measured() as found:
        stage = Stages(found)
        with ThreadPoolExecutor(THREADS) as pool:
            opened = stage("verify", lambda: list(pool.map(store.shard, digests)))()
        parts = [(ref.label, shard) for ref, shard in zip(shards, opened, strict=True)]
        sources = stage("rows", shard_rows)(parts)
        exemplars = stage("merge", merge)(parts, sources)
        learned = stage("learn", learning.learn)(
            exemplars, seed=SEED, recipe=Recipe(), threads=THREADS
        )
        findings = stage("audit", audit_exemplars)(
            exemplars, learned.judged, seed=SEED, threads=THREADS
        )
        stage("publish", publish)(
            store,
            exemplars,
            learned,
            model="m",
            backbone=backbone,
            shards=shards,
            seed=SEED,
            recipe=Recipe(),
            making=Making(command="", findings=tuple(findings)),
            sources=sources,
        )
        store.set_serving("m", 1, why="fit")
    return summary(found, store, 1)


def measure_add(work: Path) -> Row:
    """Measure AddClass of the last class."""
    store, refs = Repository(work), json.loads((work / "shards.json").read_text())
    label, digest = refs[-1]
    parent = store.manifest("m", store.serving("m"))
    new = NewExemplars(
        shards={label: digest}, backbone=parent.backbone, images=1, skipped=(), conflicts=()
    )
    job = Job(kind="add_class", model="m", label=label, accepted=time.time())
    trainer = retrain.Trainer(
        store, cores=THREADS, limits=InputLimits(max_images_per_model=2**40, max_labels=2**20)
    )
    with measured() as found:
        stage = Stages(found)
        for owner, name in (
            (retrain.Trainer, "_open_all"),
            (retrain, "shard_rows"),
            (retrain, "merge"),
            (retrain, "learn"),
            (retrain, "audit_exemplars"),
            (gate, "compare"),
            (retrain, "publish"),
        ):
            setattr(
                owner, name, stage(name.strip("_").removesuffix("_exemplars"), getattr(owner, name))
            )
        candidate = trainer.solve(job, new, "operation")
        assert candidate.rejected is None, candidate.rejected.message
        trainer.serve(job, candidate.result.revision, "operation")
    return summary(found, store, candidate.result.revision)


def summary(found: Row, store: Repository, revision: int) -> Row:
    """Return the measurements with those of the revision, and the ceiling of its products."""
    manifest = store.manifest("m", revision)
    metrics = store.metrics(manifest)
    width = store.backbone(manifest).width
    products = manifest.images * width**2
    ceiling = statistics.median(found.pop("seconds_per_product")) * products
    return {
        "images": manifest.images,
        "classes": len(manifest.labels),
        "head": manifest.chosen.kind,
        "normalisation": manifest.chosen.normalisation,
        "judged": metrics.images,
        "accuracy": metrics.accuracy,
        "head_sha256": manifest.head,
        **found,
        "gemm_seconds": ceiling,
        "ratio": found["stages"]["learn"][0] / ceiling,
    }


class Stages:
    """Wall and processor seconds of named stages, which functions add to."""

    def __init__(self, found: Row) -> None:
        self._seconds: dict[str, list[float]] = found.setdefault("stages", {})

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its time added to the stage ``name`` at each call."""

        def timed(*arguments: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                seconds = self._seconds.setdefault(name, [0.0, 0.0])
                seconds[0] += time.perf_counter() - wall
                seconds[1] += time.process_time() - cpu

        return timed


@contextmanager
def measured() -> Iterator[Row]:
    """Add seconds, peak memory and the speed of bare products to the row that it yields."""
    found: Row = {"seconds_per_product": [time_products()]}
    peak = {"VmRSS": 0, "RssAnon": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]))

    watching = threading.Thread(target=watch)
    watching.start()
    start, cpu = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        done.set()
        watching.join()
    found["seconds"], found["cpu_seconds"] = time.perf_counter() - start, time.process_time() - cpu
    found["peak_gib"] = peak["VmRSS"] / 2**20
    found["own_gib"] = peak["RssAnon"] / 2**20
    found["seconds_per_product"].append(time_products())


def time_products() -> float:
    """Return the wall seconds per number of x'x, without its symmetric half, on THREADS threads."""
    x = np.random.default_rng(SEED).standard_normal((GEMM_ROWS, 1_280), dtype=np.float32)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(THREADS) as pool:
        seconds = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            list(pool.map(lambda _: x.T @ x, range(THREADS)))
            seconds.append(time.perf_counter() - start)
    return min(seconds) / (THREADS * GEMM_ROWS * 1_280**2)


if __name__ == "__main__":
    main()
