"""Command ``fit``: options and output."""

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
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.errors import InvalidInput
from topwork.inputs.kinds import kind_of
from topwork.inputs.thumbnail import LARGEST, SIDE
from topwork.printable import file_name, printable
from topwork.repository_option import database_option, repository_option
from topwork.storage.location import to_location
from topwork.terminal import Console, LocalPath
from topwork_trainer import backbones
from topwork_trainer.cli import progress
from topwork_trainer.cli.finetuning import finetuning_config, finetuning_options
from topwork_trainer.cli.fit_json import fit_json
from topwork_trainer.cli.options import (
    cache_option,
    kind_option,
    show_folders,
    split_names,
)
from topwork_trainer.fit.fit import FitConfig, FitResult
from topwork_trainer.kinds import noun_of, size_text

MOST_LABELS = 12
"""Raising it prints larger confusion matrices, as long as the terminal is wide enough."""


class _OrAuto(click.ParamType[Any]):
    """Option type: a number from a range, or ``auto``."""

    name = "N|auto"

    def __init__(self, least: int, most: int) -> None:
        self._range = click.IntRange(least, most)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        """See click."""
        return "auto" if value == "auto" else int(self._range.convert(value, param, ctx))


@click.command()
@click.argument("data", required=False, type=LocalPath(path_type=Path))
@click.option(
    "--embeddings",
    help="Parts of `topwork-train embed`, DIR or 'DIR/*.parquet', also of a bucket, "
    "'s3://bucket/DIR/*.parquet', instead of DATA: the photos are not read again.",
)
@click.option("--model", required=True, help="Name of the model; allowed: a-z 0-9 . _ -")
@repository_option("Repository in which the revision is published.", exists=False, required=True)
@database_option
@kind_option("image", "text", "audio", "embedding")
@click.option("--classes", help="Classes to use, separated by commas. Default: all.")
@click.option(
    "--space",
    default="",
    show_default=False,
    help="Name of what computed the embeddings, if DATA has embeddings and not the name.",
)
@click.option(
    "--test",
    type=LocalPath(path_type=Path),
    help="Test set, given like DATA, on which the published model is evaluated.",
)
@click.option(
    "--backbone",
    default=backbones.DEFAULT,
    help="Backbone, one of `topwork-train backbones`; NAME:pooled adds the means of its lower "
    "stages, NAME+NAME joins two, NAME:auto chooses the embedding of a vision transformer; auto: "
    "the best one on a sample of the photos.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PyTorch state dict to load instead of the published weights.",
)
@click.option(
    "--image-size",
    type=_OrAuto(32, 1024),
    help="Side of the backbone's input in pixels, or auto. Default: the backbone's own.",
)
@click.option(
    "--views",
    default=1,
    type=_OrAuto(1, 2),
    help="Number of views: 1, the image; 2, also its mirror image, at twice the cost; or auto.",
)
@click.option(
    "--head",
    default="auto",
    type=click.Choice([*get_args(HeadKind), "auto"]),
    help="Kind of head; auto: chosen by cross-validation.",
)
@click.option(
    "--normalisation",
    default="auto",
    type=click.Choice([*get_args(Normalisation), "auto"]),
    help="Normalisation of the embeddings; auto: chosen by cross-validation.",
)
@finetuning_options
@click.option(
    "--publish",
    default="better",
    type=click.Choice(["better", "finetuned"]),
    help="Publish the fine-tuned backbone only if it is significantly better, or always.",
)
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "int8", "auto"]),
    help="Precision of the backbone; auto: int8 if it is faster on this machine and loses at most "
    "0.5 points of accuracy.",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    help="Seed of the cross-validation folds and of fine-tuning.",
)
@click.option(
    "--drop-suspects",
    is_flag=True,
    help="Leave out photos whose label the audit suspects, list them, and learn again.",
)
@click.option(
    "--keep-images",
    is_flag=True,
    help="Store the photos in the repository, as uploads are. Otherwise only their embeddings and "
    "thumbnails are stored.",
)
@click.option(
    "--preview-pixels",
    default=SIDE,
    type=click.IntRange(SIDE, LARGEST),
    help="Side of the thumbnails of training photos, also of those that are added later, in "
    "pixels; 160 shows details in the console and costs about 5 KB a photo more.",
)
@click.option(
    "--strict", is_flag=True, help="Refuse to train if the audit has an error or a warning."
)
@click.option(
    "--signing-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of the private key that signs the revision; `topwork keygen` makes one.",
)
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def fit(
    data: Path | None,
    embeddings: str | None,
    classes: str | None,
    head: Any,
    normalisation: Any,
    as_json: bool,
    **options: Any,
) -> None:
    """Train on the labelled photos in DATA and publish a revision.

    DATA is a folder that contains one folder of photos per class, a manifest (CSV, TSV, JSON lines
    or Parquet with columns path, label and optionally split and group), annotations (COCO, Label
    Studio), a Hugging Face data set, or a zip or tar archive of folders. If it has the splits train
    and val or test, the model is trained on train only and tested on the others. Files that are
    left out are listed with the reason.

    DATA may also be texts: folders of .txt files, tables with columns text and label, or FASTA
    files; or recordings in folders, .wav, .flac, .ogg or .mp3. They need the --backbone of an
    encoder of texts or audio; see `topwork-train backbone add`.

    DATA may also be embeddings that you have computed: one .npz or .parquet file with embeddings
    and labels, or a folder with one folder of .npy files per class.

    The object that --json prints has model, revision, labels, accuracy, accuracy_low,
    accuracy_high, per_class, seconds, held_out, left_out and more.
    """
    from topwork_trainer.fit import fit as module

    given = data if embeddings is None else to_location(embeddings)
    if given is None or (data and embeddings):
        raise InvalidInput("give DATA or --embeddings, one of them", field="data")
    config = FitConfig(
        data=given,
        embedded=embeddings is not None,
        classes=split_names(classes),
        recipe=Recipe(head=head, normalisation=normalisation),
        finetuning=finetuning_config(options),
        command=printable(shlex.join(["topwork-train", *sys.argv[1:]])),
        **options,
    )
    with progress.stages() as on_progress:
        result = module.fit(config, on_progress)
    if as_json:
        print(json.dumps(fit_json(result)))
    else:
        _show(tables.console(), result)


def _show(console: Console, result: FitResult) -> None:
    metrics, manifest = result.metrics, result.manifest
    inputs = f"{noun_of(kind_of(result.backbone.preprocess).name)}s"
    headers = ("label", inputs, "precision", "recall")
    rows = [
        (label.label, str(label.images), f"{label.precision:.3f}", f"{label.recall:.3f}")
        for label in metrics.per_label
    ]
    table = tables.table(headers, rows, copied=["label"])
    if len(rows) <= MOST_LABELS:  # the report always has the confusion matrix
        predicted = [f"predicted {label}" for label in manifest.labels]
        counts = [map(str, row) for row in metrics.confusion]
        with_confusion = tables.table(
            (*headers, *predicted), [(*row, *more) for row, more in zip(rows, counts, strict=True)]
        )
        if tables.width(with_confusion) <= console.width:
            table = with_confusion
    console.print(table)
    for skipped in (result.skipped, *(split.skipped for split in result.held_out)):
        for image in skipped:
            console.print(f"left out {image.name}: {image.message}", markup=False, soft_wrap=True)
    show_folders(console, result.left_out, result.notes)
    if counted := _count(result.findings):
        console.print(f"The audit has {counted}: see the report", highlight=False)
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in result.seconds.items())
    chosen = manifest.chosen
    unknown = f", unknown AUROC {metrics.unknown.auroc:.3f}" if metrics.unknown else ""
    console.print(
        f"{manifest.model} revision {manifest.revision} serves: accuracy {metrics.accuracy:.3f}, "
        f"95 % interval {metrics.accuracy_low:.3f} to {metrics.accuracy_high:.3f} "
        f"({metrics.folds}-fold, {metrics.images} {inputs}), calibration error {metrics.ece:.3f}"
        f"{unknown}\n"
        f"{_input(result.backbone)}; {chosen.kind} on {chosen.normalisation}, strength "
        f"{chosen.strength:g}; seed {manifest.seed}, data {manifest.data_digest[:12]}\n"
        f"{seconds}\nreport: {file_name(result.report)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _input(backbone: BackboneInfo) -> str:
    if not backbone.has_graph:
        return f"embeddings of the space {backbone.name}, {backbone.width} numbers"
    return f"{backbone.name} at {size_text(backbone.preprocess)}, {backbone.precision}"


def _count(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items())
