"""The ``topwork-train`` command: the only reader of argv and environment in the trainer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

import topwork
from topwork.errors import TopworkError
from topwork_trainer import backbones
from topwork_trainer.fit import FitConfig, Fitted, OnProgress


@click.group(context_settings={"auto_envvar_prefix": "TOPWORK_TRAIN", "show_default": True})
@click.version_option(topwork.__version__)
def cli() -> None:
    """Train image classifiers on a frozen, pre-trained backbone."""


@cli.command()
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
    with _stages() as on_progress:
        fitted = fitting.fit(config, on_progress)
    if as_json:
        print(json.dumps(_json(fitted)))
    else:
        _show(Console(), fitted)


@cli.command("backbones")
def list_backbones() -> None:
    """List the names that --backbone knows."""
    for name in backbones.names():
        print(name)


@cli.command("demo-data")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--images-per-label", default=120, type=click.IntRange(min=1))
@click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1))
def demo_data(directory: Path, images_per_label: int, seed: int) -> None:
    """Render photos of five kinds of flowers into DIRECTORY. They are drawn, not taken."""
    from topwork_trainer import render
    from topwork_trainer.flowers import LABELS

    total = images_per_label * len(LABELS)
    with _bar("rendering", total) as advance:
        render.write_dataset(
            directory, images_per_label=images_per_label, seed=seed, on_done=advance
        )
    Console(stderr=True).print(
        f"{total} rendered pictures of {len(LABELS)} kinds of flowers in {directory} "
        "(drawn by a program: no photos)",
        highlight=False,
    )


@cli.command()
@click.argument("name")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def fetch(name: str, directory: Path) -> None:
    """Download real photos: NAME is flower_photos or flowers102."""
    from topwork_trainer import fetch as fetching

    photos = fetching.fetch(name, directory)
    Console(stderr=True).print(f"{photos} photos in {directory}", highlight=False)


@cli.command()
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--new", help="The class that AddClass adds. Default: the alphabetically last.")
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), help="Default: a temporary folder."
)
def demo(data: Path | None, new: str | None, work: Path | None) -> None:
    """Tell the whole story: fit all classes but one, serve, classify, add the last, classify.

    On the photos in DATA, a folder with a folder for each class; without it on rendered flowers.
    """
    from topwork_trainer import demo as story

    story.tell(data, new=new, work=work, console=Console())


def main() -> None:
    """Run the command line; an expected error is one line on standard error and exit status 1."""
    try:
        cli()
    except TopworkError as error:
        Console(stderr=True).print(
            "[red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True
        )
        sys.exit(1)


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


@contextmanager
def _stages() -> Iterator[OnProgress]:
    """Yield a progress callback that shows one bar a stage."""
    tasks: dict[str, TaskID] = {}
    with _progress() as bar:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    _complete(bar, task)
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done)

        yield update
        for task in tasks.values():
            _complete(bar, task)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield a function that advances one bar by one."""
    with _progress() as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


def _complete(bar: Progress, task: TaskID) -> None:
    for one in bar.tasks:
        if one.id == task and not one.finished:
            total = one.total or 1
            bar.update(one.id, total=total, completed=total)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    main()
