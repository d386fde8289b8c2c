"""Command ``rank``: options and output."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Column, Table

from topwork import tables
from topwork.bundle.opening import open_repository
from topwork.bundle.recipe import Recipe
from topwork.report.content import RankedBackbone
from topwork.repository_option import repository_option
from topwork.runtime.cores import available_cores
from topwork.storage.location import Location
from topwork.terminal import Console
from topwork_trainer import backbones
from topwork_trainer.backbones import LEAST_IMAGE_SIZE, MOST_IMAGE_SIZE, BackboneChoice
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.cli import progress
from topwork_trainer.cli.options import (
    cache_option,
    data_argument,
    kind_option,
    show_folders,
    split_names,
)
from topwork_trainer.data import scan
from topwork_trainer.fit.attempts import Attempts
from topwork_trainer.ranking import rank as module
from topwork_trainer.ranking.rank import SAMPLE, explain, notation


@click.command()
@data_argument
@click.option(
    "--backbones",
    "wanted",
    help="Backbones to compare, separated by commas, each NAME[+NAME][@[SIZE][xVIEWS]], such as "
    "resnet50, efficientnet_lite0@288, efficientnet_lite0@x2 (mean of image and mirror image), "
    "efficientnet_lite0:pooled (with the means of lower stages) or "
    "efficientnet_lite0+efficientnet_lite1@288 (concatenated embeddings). Default: all whose "
    "weights are on this machine; weights of others are downloaded.",
)
@click.option(
    "--image-size",
    type=click.IntRange(LEAST_IMAGE_SIZE, MOST_IMAGE_SIZE),
    help="Side of the input in pixels, for backbones without @SIZE. Default: the backbone's own.",
)
@click.option(
    "--views",
    type=click.IntRange(1, 2),
    help="Number of views, for backbones without xVIEWS. Default: 1.",
)
@click.option(
    "--sample",
    "size",
    default=SAMPLE,
    type=click.IntRange(min=1),
    help="Approximate number of photos in the sample, spread evenly over the classes.",
)
@kind_option("image", "text", "audio")
@click.option("--classes", help="Classes to use, separated by commas. Default: all.")
@repository_option(
    "Repository that stores the exported backbones, and has text encoders. Default: a "
    "temporary folder.",
    exists=False,
)
@cache_option
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    help="Seed of the sample and of the cross-validation folds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def rank(
    data: Path,
    wanted: str | None,
    image_size: int | None,
    views: int | None,
    size: int,
    kind: str,
    classes: str | None,
    repository: Location | None,
    cache: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare backbones on a sample of the photos or texts in DATA.

    DATA is given as for fit. For each backbone the table has the cross-validated accuracy of the
    head that a fit would learn, the accuracy of the 5 nearest neighbours (kNN), the time in
    milliseconds to prepare and embed one of them on one core, the file size in MB and the width of
    the embedding.
    """
    photos = scan(data, classes=split_names(classes), kind=kind)
    with ExitStack() as stack:
        root = repository or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened = open_repository(root)
        names = split_names(wanted) or module.candidates(opened, photos.kind)
        choices = _choices(names, image_size, views)
        attempts = Attempts(
            repository=opened,
            sources=photos.train,
            recipe=Recipe(),
            seed=seed,
            cores=available_cores(),
            cache=stack.enter_context(EmbeddingCache(cache)) if cache else None,
            exports=Exports(cache) if cache else None,
            on_progress=stack.enter_context(progress.stages()),
        )
        chosen, rows = module.rank(attempts, choices, size=size)
    if as_json:
        document = {
            "backbones": [asdict(row) for row in rows],
            "chosen": str(chosen),
            "seed": seed,
            "left_out": [group.json() for group in photos.left_out],
            "notes": list(photos.notes),
        }
        print(json.dumps(document))
    else:
        console = tables.console()
        show_folders(console, photos.left_out, photos.notes)
        _show(console, rows)


def _choices(
    names: Sequence[str], image_size: int | None, views: int | None
) -> list[BackboneChoice]:
    choices = map(backbones.parse, names)
    return [
        replace(
            choice,
            image_size=choice.image_size or image_size,
            views=choice.views if choice.views > 1 else views or 1,
        )
        for choice in choices
    ]


def _show(console: Console, rows: Sequence[RankedBackbone]) -> None:
    table = Table(
        Column("backbone", overflow="fold", min_width=22),
        Column("accuracy (95 %)", no_wrap=True),
        *(Column(name, no_wrap=True) for name in ("kNN", "ms", "MB", "width")),
        Column("licence", overflow="fold", min_width=10),
        box=None,  # so that the table fits into 80 columns
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        if row.error:
            continue
        table.add_row(
            escape(notation(row)),
            f"{row.accuracy:.3f} ({row.accuracy_low:.3f}..{row.accuracy_high:.3f})",
            f"{row.knn_accuracy:.3f}",
            f"{row.milliseconds:.1f}",
            f"{row.megabytes:.1f}",
            str(row.width),
            escape(row.licence),
            style="bold" if row.chosen else None,
        )
    console.print(table)
    for row in rows:
        if row.error:
            console.print(
                f"{notation(row)} cannot be used: {row.error}", markup=False, soft_wrap=True
            )
    console.print(explain(rows), markup=False, highlight=False, soft_wrap=True)
