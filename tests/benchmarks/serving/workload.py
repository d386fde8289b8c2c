"""Workload of the serving benchmark: photos, models fitted on them, and a thousand copies."""

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
"""Number of models to which AddClass adds a class, one after the other."""
SENT = 64
"""Number of photos that are sent repeatedly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Photos and repositories of all measurements. The last label is held out for AddClass."""

    photos: Sequence[bytes]
    """Photos of the models' labels."""
    new_label: str
    new_photos: Sequence[tuple[str, bytes]]
    root: Path
    """Directory of the repositories below, and of ``bare/<precision>``."""
    models: int
    """Number of models in the repository ``many``."""

    @property
    def main(self) -> Path:
        """Repository with ``fp32``, ``int8``, ``swapped`` (two revisions) and ``learner-<n>``."""
        return self.root / "main"

    @property
    def single(self) -> Path:
        """Repository with one model, ``linear-0``: the backbone of ``int8``, a linear head."""
        return self.root / "single"

    @property
    def many(self) -> Path:
        """Repository with ``linear-0`` to ``linear-<models - 1>``, each with its own head."""
        return self.root / f"many-{self.models}"

    def roll_back_learners(self) -> None:
        """Let the models of AddClass serve the revision without the new label again."""
        for number in range(LEARNERS):
            Repository(self.main).set_serving(f"learner-{number}", 1, why="rollback")

    def bare(self, precision: str) -> Path:
        """Return the directory of the bare model of ``precision``."""
        return self.root / "bare" / precision


def prepare(data: Path | None, root: Path, *, models: int) -> Workload:
    """Return the workload below ``root``, created if needed.

    ``data`` is a folder with a folder of photos for each class; None renders flowers.
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
    """Return encoded Classify requests of ``images`` photos each, to ``models`` in rotation."""
    return [
        classify_pb.ClassifyRequest(
            model=f"models/{models[number % len(models)]}",
            images=[photos[(number + index) % len(photos)] for index in range(images)],
        ).SerializeToString()
        for number in range(max(SENT, len(models)))
    ]


def decode(answer: bytes) -> classify_pb.ClassifyResponse:
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
            spec=repository.backbone(manifest).image_spec,
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
    """Publish a copy under another name with a different head file, and let it serve."""
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
