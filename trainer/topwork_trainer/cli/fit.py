"""The command ``fit``: its options, and how its result is shown."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import click

from topwork import tables
from topwork.bundle.findings import Finding
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.printable import file_name, printable
from topwork.terminal import Console
from topwork_trainer import backbones
from topwork_trainer.cli import progress
from topwork_trainer.cli.options import cache_option, data_argument, show_folders, split_names
from topwork_trainer.fit.fit import FitConfig, Fitted
from topwork_trainer.fit.held_out import HeldOut

MOST_CALLED = 12
"""Labels up to which the confusion matrix is printed, where the terminal is wide enough."""


class _OrAuto(click.ParamType[Any]):
    """A number from a range, or ``auto``."""

    name = "N|auto"

    def __init__(self, least: int, most: int) -> None:
        self._range = click.IntRange(least, most)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        """See click."""
        return "auto" if value == "auto" else int(self._range.convert(value, param, ctx))


@click.command()
@data_argument
@click.option("--model", required=True, help="Name of the model: a-z 0-9 . _ -")
@click.option("--repository", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--classes", help="Folders to use, comma-separated. Default: all.")
@click.option(
    "--backbone",
    default=backbones.DEFAULT,
    help="See `topwork-train backbones`; NAME+NAME joins two; auto: the best on a sample.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="State dict to use instead of the backbone's published weights.",
)
@click.option(
    "--image-size",
    type=_OrAuto(32, 1024),
    help="Side in pixels of the backbone's input, or auto. Default: its own.",
)
@click.option(
    "--views",
    default=1,
    type=_OrAuto(1, 2),
    help="2: embed each image and its mirror image, at twice the cost; or auto.",
)
@click.option(
    "--head",
    default="auto",
    type=click.Choice([*get_args(HeadKind), "auto"]),
    help="Kind of head; auto: by cross-validation.",
)
@click.option(
    "--normalisation",
    default="auto",
    type=click.Choice([*get_args(Normalisation), "auto"]),
    help="What happens to embeddings first; auto: by cross-validation.",
)
@click.option(
    "--unfreeze",
    default="none",
    help="Stages of the backbone to fine-tune: none, last:N or all; see `describe`.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Of fine-tuning, at most.")
@click.option(
    "--mirror/--no-mirror",
    default=True,
    help="Whether fine-tuning may mirror photos: not where left and right differ.",
)
@click.option(
    "--publish",
    default="better",
    type=click.Choice(["better", "finetuned"]),
    help="Take the fine-tuned backbone only if it is better beyond chance, or in any case.",
)
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "int8", "auto"]),
    help="Of the backbone; auto: int8 if it is faster here and costs at most 0.5 points.",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    help="Seed of the cross-validation's folds and of fine-tuning.",
)
@click.option("--strict", is_flag=True, help="Refuse photos that the audit warns about.")
@click.option(
    "--signing-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private key (PEM file, see `topwork keygen`) that signs what is published.",
)
@cache_option
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def fit(
    data: Path,
    classes: str | None,
    head: Any,
    normalisation: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Train on DATA, a folder with a folder of photos for each class, and publish a revision.

    If DATA holds train and val or test, with the classes' folders in each, it trains on train
    alone and judges the model on the others. Files that are left out are listed with the reason.

    With --json, ends with: model, revision, labels, accuracy, accuracy_low, accuracy_high,
    per_class, seconds, held_out, left_out and more.
    """
    from topwork_trainer.fit import fit as fitting

    config = FitConfig(
        data=data,
        classes=split_names(classes),
        recipe=Recipe(head=head, normalisation=normalisation),
        command=printable(shlex.join(["topwork-train", *sys.argv[1:]])),
        **options,
    )
    with progress.stages() as on_progress:
        fitted = fitting.fit(config, on_progress)
    if as_json:
        print(json.dumps(_json(fitted)))
    else:
        _show(tables.console(), fitted)


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
        "head": {
            "kind": manifest.chosen.kind,
            "normalisation": manifest.chosen.normalisation,
            "strength": manifest.chosen.strength,
        },
        "ece": metrics.ece,
        "unknown_auroc": metrics.unknown.auroc if metrics.unknown else None,
        "precision": fitted.backbone.precision,
        "image_size": fitted.backbone.preprocess.crop,
        "notes": list(fitted.notes),
        "held_out": [_held_out_json(one) for one in fitted.held_out],
        "left_out": [one.json() for one in fitted.left_out],
        "findings": [
            {"kind": one.kind, "severity": one.severity, "message": one.message}
            for one in fitted.findings
        ],
        "report": file_name(fitted.report),
    }


def _held_out_json(held_out: HeldOut) -> dict[str, object]:
    accuracy, low, high = held_out.interval or (None, None, None)
    return {
        "split": held_out.split,
        "images": held_out.images,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "repeated": held_out.repeated,
        "skipped": [{"image": one.name, "error": one.message} for one in held_out.skipped],
    }


def _show(console: Console, fitted: Fitted) -> None:
    metrics, manifest = fitted.metrics, fitted.manifest
    headers = ("label", "images", "precision", "recall")
    rows = [
        (one.label, str(one.images), f"{one.precision:.3f}", f"{one.recall:.3f}")
        for one in metrics.per_label
    ]
    called = [f"called {one}" for one in manifest.labels]
    counts = [map(str, row) for row in metrics.confusion]
    whole = tables.table(
        (*headers, *called), [(*row, *more) for row, more in zip(rows, counts, strict=True)]
    )
    # The report has the confusion matrix of however many labels.
    wide = tables.width(whole) <= console.width and len(called) <= MOST_CALLED
    console.print(whole if wide else tables.table(headers, rows, copied=["label"]))
    for skipped in (*fitted.skipped, *(one for held in fitted.held_out for one in held.skipped)):
        console.print(f"left out {skipped.name}: {skipped.message}", markup=False, soft_wrap=True)
    show_folders(console, fitted.left_out, fitted.notes)
    if said := _counted(fitted.findings):
        console.print(f"The audit has {said}: see the report", highlight=False)
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in fitted.seconds.items())
    chosen = manifest.chosen
    unknown = f", unknown AUROC {metrics.unknown.auroc:.3f}" if metrics.unknown else ""
    console.print(
        f"{manifest.model} revision {manifest.revision} serves: accuracy {metrics.accuracy:.3f}, "
        f"95 % interval {metrics.accuracy_low:.3f} to {metrics.accuracy_high:.3f} "
        f"({metrics.folds}-fold, {metrics.images} images), calibration error {metrics.ece:.3f}"
        f"{unknown}\n"
        f"{fitted.backbone.name} at {fitted.backbone.preprocess.crop}, "
        f"{fitted.backbone.precision}; {chosen.kind} on {chosen.normalisation}, strength "
        f"{chosen.strength:g}; seed {manifest.seed}, data {manifest.data_digest[:12]}\n"
        f"{seconds}\nreport: {file_name(fitted.report)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _counted(findings: Sequence[Finding]) -> str:
    counts = Counter(one.severity for one in findings)
    return ", ".join(f"{count} {one}{'s' * (count > 1)}" for one, count in counts.items())
