"""What is served and what is sent: photos, models fitted on them, and a thousand copies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from benchmarks import bare
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork_trainer import commands

CLASSIFY = "/topwork.v1.ClassifierService/Classify"
PRECISIONS = ("fp32", "int8")
LEARNERS = 24
"""Models that AddClass teaches, one after the other."""
SENT = 64
"""Photos that are sent, over and over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """All that the measurements need. The last label is held out: AddClass learns it."""

    photos: Sequence[bytes]
    """Of the labels that the models know."""
    new_label: str
    new_photos: Sequence[tuple[str, bytes]]
    root: Path
    """Holds the repositories below, and ``bare/<precision>``."""
    models: int
    """In the repository ``many``."""

    @property
    def main(self) -> Path:
        """The repository with ``fp32``, ``int8``, ``swapped`` (two revisions), ``learner-<n>``."""
        return self.root / "main"

    @property
    def single(self) -> Path:
        """The repository with one model, ``linear-0``: the backbone of ``int8``, a linear head."""
        return self.root / "single"

    @property
    def many(self) -> Path:
        """The repository with ``linear-0`` to ``linear-<models - 1>``, each a head of its own."""
        return self.root / f"many-{self.models}"

    def forget(self) -> None:
        """Let the models that AddClass taught serve the revision without the new label again."""
        for number in range(LEARNERS):
            Repository(self.main).set_serving(f"learner-{number}", 1, why="rollback")

    def bare(self, precision: str) -> Path:
        """Return the directory of the bare model that is ``precision``."""
        return self.root / "bare" / precision


def prepare(data: Path | None, root: Path, *, models: int) -> Workload:
    """Return the workload below ``root``, made if it is not there; no ``data``: rendered flowers.

    ``data`` is a folder with a folder of photos for each class.
    """
    if data is None:
        data = root / "photos"
        if not data.is_dir():
            commands.run("topwork_trainer", "demo-data", data, "--images-per-label", 60)
    *labels, new_label = sorted(path.name for path in data.iterdir() if path.is_dir())
    known = [path for label in labels for path in sorted((data / label).glob("*.jpg"))]
    new = sorted((data / new_label).glob("*.jpg"))
    workload = Workload(
        photos=[path.read_bytes() for path in known[:: max(1, len(known) // SENT)]],
        new_label=new_label,
        new_photos=[(path.name, path.read_bytes()) for path in new],
        root=root,
        models=models,
    )
    if not workload.main.is_dir():
        _fit(workload, data, labels)
    if not workload.single.is_dir():
        _copies(workload, workload.single, 1)
    if not workload.many.is_dir():
        _copies(workload, workload.many, models)
    return workload


def requests(photos: Sequence[bytes], models: Sequence[str], *, images: int = 1) -> list[bytes]:
    """Return encoded Classify requests of ``images`` photos each, to ``models`` in turns."""
    return [
        classify_pb.ClassifyRequest(
            model=f"models/{models[number % len(models)]}",
            images=[photos[(number + index) % len(photos)] for index in range(images)],
        ).SerializeToString()
        for number in range(max(SENT, len(models)))
    ]


def answered(answer: bytes) -> classify_pb.ClassifyResponse:
    """Return a decoded answer. Raises AssertionError if it has an error for any image."""
    response = classify_pb.ClassifyResponse.FromString(answer)
    assert not any(result.HasField("error") for result in response.results), response
    return response


def _fit(workload: Workload, data: Path, labels: Sequence[str]) -> None:
    made = workload.root / "made"
    shutil.rmtree(made, ignore_errors=True)
    fit = ("fit", data, "--classes", ",".join(labels), "--repository", made, "--json")
    cached = ("--cache", workload.root / "cache")
    for model, *options in (
        ("fp32",),
        ("int8", "--precision", "int8"),
        ("linear", "--precision", "int8", "--head", "logistic"),
    ):
        commands.run("topwork_trainer", *fit, *cached, "--model", model, *options)
    repository = Repository(made)
    for precision in PRECISIONS:
        manifest = repository.manifest(precision, 1)
        shutil.rmtree(workload.bare(precision), ignore_errors=True)
        bare.write(
            workload.bare(precision),
            backbone=repository.backbone_model(manifest.backbone),
            head=repository.head(manifest),
            spec=repository.backbone(manifest).preprocess,
        )
    int8 = repository.manifest("int8", 1)
    for model in ("swapped", "swapped", *(f"learner-{number}" for number in range(LEARNERS))):
        _publish(repository, repository, int8, model)
    made.rename(workload.main)


def _copies(workload: Workload, root: Path, models: int) -> None:
    made = root.with_name(f"{root.name}-made")
    shutil.rmtree(made, ignore_errors=True)
    source, target = Repository(workload.main), Repository(made)
    linear = source.manifest("linear", 1)
    target.put_backbone(source.backbone_model(linear.backbone), source.backbone(linear))
    shutil.copytree(source.root / "exemplars", target.root / "exemplars", dirs_exist_ok=True)
    for number in range(models):
        _publish(source, target, linear, f"linear-{number}")
    made.rename(root)


def _publish(source: Repository, target: Repository, manifest: Manifest, model: str) -> None:
    """Publish a copy under another name and let it serve; no two heads are the same file."""
    graph = onnx.load_model_from_string(source.head(manifest))
    known = (target.root / "models" / model).is_dir()
    graph.doc_string = f"{model} {len(target.revisions(model)) if known else 0}"
    copy = target.publish(
        replace(manifest, model=model),
        head=graph.SerializeToString(deterministic=True),
        metrics=source.metrics(manifest),
        report=lambda made: f"{made.model} revision {made.revision}".encode(),
    )
    target.set_serving(model, copy.revision, why="fit")
