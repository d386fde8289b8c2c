"""The command ``fit``: its options, and how its result is shown."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from topwork_trainer import backbones
from topwork_trainer.cli import progress
from topwork_trainer.fit import FitConfig, Fitted


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Name of the model: a-z 0-9 . _ -")
@click.option("--repository", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--classes", help="Folders to use, comma-separated. Default: all.")
@click.option("--backbone", default=backbones.DEFAULT, help="See `topwork-train backbones`.")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="State dict to use instead of the backbone's published weights.",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    help="Seed of the cross-validation's folds.",
)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def fit(
    data: Path,
    model: str,
    repository: Path,
    classes: str | None,
    backbone: str,
    weights: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Train on DATA, a folder with a folder of photos for each class, and publish a revision.

    With --json, ends with: model, revision, labels, accuracy, accuracy_low, accuracy_high,
    per_class, seconds and more.
    """
    from topwork_trainer import fit as fitting

    config = FitConfig(
        data=data,
        model=model,
        repository=repository,
        classes=[name.strip() for name in classes.split(",")] if classes else None,
        backbone=backbone,
        weights=weights,
        seed=seed,
    )
    with progress.stages() as on_progress:
        fitted = fitting.fit(config, on_progress)
    if as_json:
        print(json.dumps(_json(fitted)))
    else:
        _show(Console(), fitted)


def _json(fitted: Fitted) -> dict[str, object]:
    metrics, manifest = fitted.metrics, fitted.manifest
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "labels": list(manifest.labels),
        "accuracy": metrics.accuracy,
        "accuracy_low": metrics.accuracy_low,
        "accuracy_high": metrics.accuracy_high,
        "per_class": {
            one.label: {"images": one.images, "precision": one.precision, "recall": one.recall}
            for one in metrics.per_label
        },
        "seconds": fitted.seconds,
        "log_loss": metrics.log_loss,
        "folds": metrics.folds,
        "images": metrics.images,
        "confusion": [list(row) for row in metrics.confusion],
        "backbone": fitted.backbone.name,
        "seed": manifest.seed,
        "data_digest": manifest.data_digest,
        "skipped": [{"image": one.name, "error": one.message} for one in fitted.skipped],
    }


def _show(console: Console, fitted: Fitted) -> None:
    metrics, manifest = fitted.metrics, fitted.manifest
    table = Table(
        "label",
        "images",
        "precision",
        "recall",
        *(f"called {escape(one)}" for one in manifest.labels[:12]),
    )
    for one, row in zip(metrics.per_label, metrics.confusion, strict=True):
        table.add_row(
            escape(one.label),
            str(one.images),
            f"{one.precision:.3f}",
            f"{one.recall:.3f}",
            *(str(count) for count in row[:12]),
        )
    console.print(table)
    for skipped in fitted.skipped:
        console.print(f"left out {skipped.name}: {skipped.message}", markup=False, soft_wrap=True)
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in fitted.seconds.items())
    console.print(
        f"{manifest.model} revision {manifest.revision} serves: accuracy {metrics.accuracy:.3f}, "
        f"95 % interval {metrics.accuracy_low:.3f} to {metrics.accuracy_high:.3f} "
        f"({metrics.folds}-fold, {metrics.images} images)\n"
        f"{fitted.backbone.name}, C {manifest.strength:g}, temperature {manifest.temperature:.2f}, "
        f"seed {manifest.seed}, data {manifest.data_digest[:12]}\n{seconds}",
        highlight=False,
    )
