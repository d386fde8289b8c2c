"""Benchmark of AddClass against a full retrain, and of large changes against scikit-learn.

    PYTHONPATH=tests python -m benchmarks.learning [PHOTOS] [--new FOLDER] [--quick] [--solves]
        [--svg FILE]

PHOTOS is a folder with a folder of photos for each class, the last of which is added; without it
flowers are rendered. All images are used for training, and accuracies are cross-validated. Then a
few photos of another class, from --new or rendered, are added repeatedly to the model of all
classes. --solves omits all this.

The large changes are AddClass of a class of synthetic embeddings, each in its own process with two
threads: everything after embedding, from shards on disk to a serving revision (folds,
normalisations, heads, calibration, out-of-distribution threshold, audit, gate, report).
scikit-learn does one fit to convergence, of a logistic regression if that takes about a minute at
most, else of a ridge classifier. Both predict the same 2,000 new images. --svg draws the results.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from topwork import Client, result
from topwork.bundle.exemplars import Exemplars, make
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.changes.jobs import Job
from topwork.inputs.image_source import ImageSource
from topwork.inputs.thumbnail import SIDE, thumbnail
from topwork.runtime.backend import open_session
from topwork.runtime.cores import available_cores
from topwork.training.embed import embed
from topwork_trainer import commands

EXEMPLARS = (500, 2_000, 10_000, 100_000)
CLASSES = (5, 50, 200)
FEWEST = 5
"""Minimum of exemplars a class for a size to be measured."""
LOGISTIC = 100_000
"""Maximum of exemplars times classes for which scikit-learn fits a logistic regression."""
NEW, WIDTH, SEED = 2_000, 1280, 0
FEW = 30
"""Photos of a small new class."""
REPEATS = 7
"""Repetitions of adding the small class."""

Row = dict[str, Any]


def main() -> None:
    """Measure and print JSON: an object for AddClass, then one for each size of a change."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--new", type=Path, help="photos of another class")
    parser.add_argument("--quick", action="store_true", help="sizes that take seconds only")
    parser.add_argument("--solves", action="store_true", help="omit AddClass of photos")
    parser.add_argument("--svg", type=Path, help="file for a plot of the large changes")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        task, exemplars, classes, work = arguments.one
        tasks = {
            "prepare": prepare,
            "topwork": measure_topwork,
            "scikit-learn": measure_scikit_learn,
        }
        print(json.dumps(tasks[task](int(exemplars), int(classes), Path(work))))
        return
    if not arguments.solves:
        print(json.dumps(add_class(arguments.photos, arguments.new), indent=1), flush=True)
    rows = []
    for row in solves(EXEMPLARS[:2] if arguments.quick else EXEMPLARS):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if arguments.svg:
        arguments.svg.write_text(draw(rows))


# AddClass


def add_class(photos: Path | None, new: Path | None) -> Row:
    """Measure adding the last class against a fit of all classes, then adding a small class."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        rendered = work / "rendered"
        commands.run("topwork_trainer", "demo-data", rendered)
        data = photos or rendered
        labels = sorted(path.name for path in data.iterdir() if path.is_dir())
        repository = work / "repository"
        fit = ("fit", data, "--repository", repository, "--no-cache", "--json")
        old = ",".join(labels[:-1])
        (first,) = commands.run("topwork_trainer", *fit, "--model", "grafted", "--classes", old)
        with commands.serving(repository, work / "log") as served:
            (added,) = commands.run(
                "topwork", "add-class", "--address", served.address, "--model", "grafted",
                "--label", labels[-1], "--json", data / labels[-1],
            )  # fmt: skip
        (joint,) = commands.run("topwork_trainer", *fit, "--model", "joint")
        store = Repository(repository)
        same = store.manifest("grafted", 2).head == store.manifest("joint", 1).head
        few: Row = {}
        if new or photos:  # another rendered class would equal an existing one
            small = new or max(path for path in rendered.iterdir() if path.is_dir())
            few = add_few(store, sorted(small.iterdir())[:FEW], work)
            few["times_faster"] = joint["seconds"]["total"] / few["seconds"]
    accuracy = ("accuracy", "accuracy_low", "accuracy_high")
    return {
        "images": joint["images"],
        "new_images": added["images_used"],
        "accuracy_of_four": [first[key] for key in accuracy],
        "accuracy_of_five": [added["metrics"][key] for key in accuracy],
        "old_labels_before": added["comparison"]["accuracy_before"],
        "old_labels_after": added["comparison"]["accuracy_after"],
        "new_label_recall": added["comparison"]["taught"]["recall"],
        "add_class_seconds": added["seconds"],
        "full_retrain_seconds": joint["seconds"],
        "times_faster": joint["seconds"]["total"] / added["seconds"]["total"],
        "head_is_byte_identical": same,
        "few": few,
    }


def add_few(store: Repository, photos: Sequence[Path], work: Path) -> Row:
    """Measure adding a small class to the model of all classes; figures are medians.

    Seconds are from the last uploaded byte until the server that is watched serves the new
    revision; nobody classifies meanwhile. The budget is 1.2 times the time of embedding the photos
    on all idle cores, plus half a second.
    """
    alone = [seconds_to_embed(store, photos) for _ in range(REPEATS)][1:]
    seconds, stages = [], []
    with commands.serving(store.root, work / "log") as served, Client(served.address) as client:
        probe = [photos[0].read_bytes()]
        for _ in range(REPEATS):
            uploaded = 0.0

            def upload() -> Iterator[tuple[str, bytes]]:
                nonlocal uploaded
                for photo in photos:
                    yield photo.name, photo.read_bytes()
                uploaded = time.perf_counter()

            before = client.classify("joint", probe).revision
            accepted = client.add_class("joint", "new", upload())
            stage_times = result([*client.watch(accepted.name)][-1]).stage_times
            seconds.append(time.perf_counter() - uploaded)
            assert client.classify("joint", probe).revision > before
            stages.append(
                {
                    stage: cast("float", getattr(stage_times, stage).ToTimedelta().total_seconds())
                    for stage in ("queued", "embedding", "solving", "publishing")
                }
            )
            list(client.watch(client.remove_class("joint", "new").name))
    return {
        "images": len(photos),
        "seconds": statistics.median(seconds),
        "least_seconds": min(seconds),
        "stages": {key: statistics.median(times[key] for times in stages) for key in stages[0]},
        "embedding_alone": statistics.median(alone),
        "budget": 1.2 * statistics.median(alone) + 0.5,
    }


def seconds_to_embed(store: Repository, photos: Sequence[Path]) -> float:
    """Return the seconds of the worker's embedding loop with all cores."""
    manifest = store.manifest("joint", 1)
    session = open_session(store.backbone_model(manifest.backbone), output="embedding")
    sources = [ImageSource(name=path.name, label="new", read=path.read_bytes) for path in photos]
    start = time.perf_counter()
    embed(sources, session, store.backbone(manifest).preprocess, cores=available_cores())
    return time.perf_counter() - start


# Changes of many exemplars


def solves(sizes: Sequence[int]) -> Iterator[Row]:
    """Yield cost and accuracy on new images for each size."""
    for exemplars in sizes:
        for classes in CLASSES:
            if exemplars >= FEWEST * classes:
                row: Row = {"exemplars": exemplars, "classes": classes}
                with tempfile.TemporaryDirectory() as work:
                    for task in ("prepare", "topwork", "scikit-learn"):
                        command = [sys.executable, __file__, "--one", task]
                        printed = subprocess.run(
                            [*command, str(exemplars), str(classes), work],
                            check=True,
                            capture_output=True,
                        )
                        row[task] = json.loads(printed.stdout)
                yield row


def prepare(exemplars: int, classes: int, work: Path) -> Row:
    """Publish a model of all classes except the last; store the last class's shard."""
    from topwork.bundle.exemplars import shard_of
    from topwork.bundle.manifest import BackboneInfo
    from topwork.inputs.preprocess import PreprocessSpec
    from topwork.learning.learn import learn
    from topwork.report.content import Making
    from topwork.storage.files import sha256
    from topwork.training.publish import publish

    made = synthetic(exemplars, classes)[0]
    store = Repository(work)
    content = b"placeholder of a backbone"
    backbone = store.put_backbone(
        content,
        BackboneInfo(
            name="synthetic",
            identity="synthetic",
            digest=sha256(content),
            preprocess=PreprocessSpec(resize=224, crop=224),
            width=WIDTH,
            precision="fp32",
            licence="",
            source="",
            weights_digest=sha256(b""),
            parity_error=0.0,
            versions={},
        ),
    )
    old = made.where(made.targets < classes - 1)
    publish(
        store,
        old,
        learn(old, seed=SEED, recipe=Recipe(head="nearest_mean", normalisation="l2")),
        model="m",
        backbone=backbone.digest,
        shards=store.put_exemplars(old),
        seed=SEED,
        recipe=Recipe(),
        making=Making(command="", findings=()),
    )
    store.set_serving("m", 1, why="fit")
    label = made.labels[-1]
    return {"backbone": backbone.digest, "shard": store.put_shard(shard_of(made, label))}


def measure_topwork(exemplars: int, classes: int, work: Path) -> Row:
    """Warm up with a small fit, then measure one change."""
    from topwork.changes.new_exemplars import NewExemplars
    from topwork.changes.retrain import Trainer
    from topwork.learning.learn import learn

    learn(synthetic(60, 3)[0], seed=SEED, threads=2)
    store = Repository(work)
    before = {path: path.stat().st_ino for path in (work / "exemplars").iterdir()}
    (shard,) = set(store.stored("exemplars")) - {
        ref.digest for ref in store.manifest("m", 1).exemplars
    }
    label = f"class {classes - 1:03}"
    job = Job(kind="add_class", model="m", label=label, accepted=time.time())
    new = NewExemplars(
        shards={label: shard},
        backbone=store.manifest("m", 1).backbone,
        images=1,
        skipped=(),
        conflicts=(),
    )
    trainer = Trainer(store, cores=2)
    start, cpu = time.perf_counter(), time.process_time()
    candidate = trainer.solve(job, new, "operation")
    if candidate.rejected is None:
        trainer.serve(job, candidate.result.revision, "operation")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_mib()
    after = {path: path.stat().st_ino for path in (work / "exemplars").iterdir()}
    manifest = store.manifest("m", 2)
    _, fresh, truth = synthetic(exemplars, classes)
    (logits,) = open_session(store.head(manifest), output="logits").run_outputs(fresh, ("logits",))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak,
        "head": manifest.chosen.kind,
        "normalisation": manifest.chosen.normalisation,
        "accuracy": float((logits.argmax(axis=1) == truth).mean()),
        "cross_validated": store.metrics(manifest).accuracy,
        "shards_are_as_they_were": before == after,
    }


def measure_scikit_learn(exemplars: int, classes: int, _: Path) -> Row:
    """Measure one fit with balanced classes on embeddings of length 1."""
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from threadpoolctl import threadpool_limits

    made, new, truth = synthetic(exemplars, classes)
    few = exemplars * classes <= LOGISTIC
    head = (
        LogisticRegression(C=30.0, tol=1e-8, max_iter=10_000, class_weight="balanced")
        if few
        else RidgeClassifier(alpha=0.5, class_weight="balanced")
    )
    start, cpu = time.perf_counter(), time.process_time()
    with threadpool_limits(2):
        lengths = np.linalg.norm(made.embeddings, axis=1, keepdims=True)
        head.fit(made.embeddings / lengths, made.targets)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    predicted = head.predict(new / np.linalg.norm(new, axis=1, keepdims=True))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak_mib(),
        "head": "logistic" if few else "ridge",
        "accuracy": float((predicted == truth).mean()),
    }


def synthetic(
    exemplars: int, classes: int
) -> tuple[Exemplars, NDArray[np.float32], NDArray[np.int64]]:
    """Return exemplars with 1 % near-duplicates, and test embeddings with their classes.

    Embeddings are non-negative like a backbone's: class means, variation in 64 directions shared by
    all classes, and noise. Fingerprints are those of smooth random pictures.
    """
    rng = np.random.default_rng(SEED)
    means = rng.standard_normal((classes, WIDTH), dtype=np.float32) * np.float32(0.25)
    shared = rng.standard_normal((64, WIDTH), dtype=np.float32) * np.float32(0.05)

    def embed(targets: NDArray[np.int64]) -> NDArray[np.float32]:
        embeddings = np.empty((len(targets), WIDTH), dtype=np.float32)
        for start in range(0, len(targets), 4096):
            block = targets[start : start + 4096]
            varied = rng.standard_normal((len(block), 64), dtype=np.float32) @ shared
            noise = rng.standard_normal((len(block), WIDTH), dtype=np.float32)
            embeddings[start : start + 4096] = np.abs(
                means[block] + varied + np.float32(0.5) * noise
            )
        return embeddings

    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, exemplars - classes)])
    copies = exemplars // 100
    targets[len(targets) - copies :] = targets[:copies]
    embeddings, prints = embed(targets), fingerprints(exemplars, rng)
    embeddings[len(targets) - copies :] = embeddings[:copies] * np.float32(1.01)
    prints[len(targets) - copies :] = prints[:copies]
    prints[len(targets) - copies :, 0] ^= rng.integers(0, 256, copies, dtype=np.uint8)
    pictures = [
        thumbnail(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1))
        for _ in range(20)
    ]
    truth = rng.integers(0, classes, NEW)
    made = make(
        embeddings,
        rng.integers(0, 256, (exemplars, 32), dtype=np.uint8),
        prints,
        [f"class {target:03}" for target in targets.tolist()],
        names=[f"{row:06}.jpg" for row in range(exemplars)],
        # All different, as in a real shard; bytes after a picture's end are ignored.
        thumbnails=[pictures[row % 20] + b"%d" % row for row in range(exemplars)],
    )
    return made, embed(truth), truth


def fingerprints(rows: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return difference hashes of smooth pictures with some noise."""
    prints = np.empty((rows, 32), dtype=np.uint8)
    down, across = (
        np.maximum(1 - abs(np.linspace(0, 4, cells)[:, None] - np.arange(5)), 0)
        for cells in (16, 17)
    )
    for start in range(0, rows, 4096):
        coarse = rng.standard_normal((min(4096, rows - start), 5, 5))
        grid = down @ coarse @ across.T + 0.1 * rng.standard_normal((len(coarse), 16, 17))
        bits = (grid[:, :, 1:] > grid[:, :, :-1]).reshape(len(coarse), 256)
        prints[start : start + 4096] = np.packbits(bits, axis=1)
    return prints


def peak_mib() -> float:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Plot

STYLES = {"scikit-learn": "other", "topwork": "topwork"}
"""CSS class of each library; the last is drawn on top."""
PANEL, HEIGHT, LEFT, TOP, BOTTOM, GAP = 400, 400, 74, 44, 62, 84
STYLE = """
text { fill: #26332a; font: 14px system-ui, Helvetica, Arial, sans-serif; text-anchor: middle; }
.tick { fill: #59616b; font-size: 13px; }
.end { text-anchor: end; }
.start { text-anchor: start; }
.grid { stroke: #d8dccf; }
.page { fill: #fbfaf5; }
.topwork { stroke: #2c7a3f; fill: none; }
.topwork circle { fill: #2c7a3f; }
circle { stroke-width: 1.5; }
.other { stroke: #8a8f7a; fill: none; stroke-dasharray: 5 4; }
.other circle { fill: #fbfaf5; stroke-dasharray: none; }
text.topwork { fill: #2c7a3f; stroke: none; font-weight: 700; }
text.other { fill: #59616b; stroke: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e9df; }
  .tick, text.other { fill: #a3abb4; }
  .grid { stroke: #33393f; }
  .page, .other circle { fill: #14171a; }
  .topwork { stroke: #7fcf8f; }
  .topwork circle, text.topwork { fill: #7fcf8f; }
}
"""


def draw(rows: Sequence[Row]) -> str:
    """Return an SVG of CPU seconds and memory by exemplars, a line for each number of classes.

    CPU seconds depend less than wall time on other load of the machine.
    """
    width = 2 * (LEFT + PANEL) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}">',
        "<title>Seconds and memory of a change, by exemplars and classes</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{HEIGHT}"/>',
        *panel(rows, LEFT, "Processor seconds", lambda row: row["cpu_seconds"]),
        *panel(
            rows,
            2 * LEFT + PANEL + GAP // 2,
            "Peak GiB of memory",
            lambda row: row["peak_mib"] / 1024,
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def panel(
    rows: Sequence[Row], left: float, title: str, value: Callable[[Row], float]
) -> Iterator[str]:
    """Yield the elements of one plot with logarithmic axes."""
    sizes = sorted({row["exemplars"] for row in rows})
    values = [value(row[library]) for row in rows for library in STYLES if library in row]
    low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
    first, last = np.log10(sizes[0]), np.log10(max(sizes[-1], 2 * sizes[0]))
    span, height = PANEL - 70, HEIGHT - TOP - BOTTOM

    def x(exemplars: float) -> float:
        return float(left + span * (np.log10(exemplars) - first) / (last - first))

    def y(number: float) -> float:
        return float(TOP + height * (high - np.log10(number)) / (high - low))

    for power in np.arange(low, high + 1):
        yield f'<path class="grid" d="M{left} {y(10**power):.1f}h{span}"/>'
        yield text("tick end", left - 8, y(10**power) + 5, f"{10**power:g}")
    for size in sizes:
        yield f'<path class="grid" d="M{x(size):.1f} {TOP}v{height}"/>'
        yield text("tick", x(size), HEIGHT - BOTTOM + 20, f"{size:,}")
    yield text("", left + span / 2, HEIGHT - 14, "exemplars")
    yield text("start", left, TOP - 18, f"{title}; dashed: one fit of scikit-learn")
    for library, style in STYLES.items():
        for classes in CLASSES:
            mine = [row for row in rows if row["classes"] == classes and library in row]
            points = [(x(row["exemplars"]), y(value(row[library]))) for row in mine]
            if points:
                path = "L".join(f"{across:.1f} {down:.1f}" for across, down in points)
                dots = "".join(f'<circle cx="{a:.1f}" cy="{d:.1f}" r="3.5"/>' for a, d in points)
                thick = 1 + CLASSES.index(classes)
                yield f'<g class="{style}" stroke-width="{thick}"><path d="M{path}"/>{dots}</g>'
    yield from names(rows, left + span + 10, lambda row: y(value(row)))


def names(rows: Sequence[Row], left: float, y: Callable[[Row], float]) -> Iterator[str]:
    """Yield the lines' names at their ends, without overlaps."""
    ends = []
    for library, style in STYLES.items():
        for classes in CLASSES:
            mine = [row for row in rows if row["classes"] == classes and library in row]
            if mine:
                name = f"{classes} classes" if library == "topwork" else f"sklearn {classes}"
                ends.append((y(mine[-1][library]), style, name))
    lowest = 0.0
    for down, style, name in sorted(ends):
        lowest = max(down + 5, lowest + 16)
        yield text(f"{style} start", left, lowest, name)


def text(style: str, x: float, y: float, words: str) -> str:
    """Return an SVG text."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{words}</text>'


if __name__ == "__main__":
    main()
