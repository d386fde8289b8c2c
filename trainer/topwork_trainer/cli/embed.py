"""Command ``embed``: options and output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from topwork import tables
from topwork.errors import InvalidInput
from topwork.inputs.thumbnail import LARGEST, SIDE
from topwork.printable import file_name
from topwork.repository_option import repository_option
from topwork.terminal import PathOrURL
from topwork_trainer import backbones
from topwork_trainer.cli import progress
from topwork_trainer.cli.options import cache_option, data_argument, split_names
from topwork_trainer.embedding.plan import PART_PHOTOS


@click.command()
@data_argument
@click.option(
    "--out",
    required=True,
    type=PathOrURL(file_okay=False, path_type=Path),
    help="Directory of the parts, or URL of a prefix in a bucket, s3://bucket/DIR. The same "
    "command resumes a run that was killed.",
)
@click.option(
    "--engine",
    default="local",
    type=click.Choice(["local", "ray"]),
    help="local: in this process, on all cores; ray: in tasks of Ray, on all machines of the "
    "cluster that RAY_ADDRESS names, or on this one.",
)
@click.option("--model", help="Model whose backbone embeds; needs --repository.")
@click.option(
    "--backbone",
    help=f"Backbone that embeds, instead of a model's, as for fit.  [default: {backbones.DEFAULT}]",
)
@repository_option("Repository of the model, or in which the backbone was added.", exists=True)
@click.option("--classes", help="Classes to use, separated by commas. Default: all.")
@click.option(
    "--preview-pixels",
    default=SIDE,
    type=click.IntRange(SIDE, LARGEST),
    help="Side of the thumbnails in pixels, as for fit.",
)
@click.option(
    "--part-photos",
    default=PART_PHOTOS,
    type=click.IntRange(min=1),
    help="Photos per part; a run that resumes keeps its own number.",
)
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def embed(
    data: Path,
    model: str | None,
    backbone: str | None,
    classes: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Embed the labelled photos in DATA, given as for fit, into Parquet files.

    Each part has the embeddings of some photos with their names, labels and thumbnails, and is
    written whole or not at all. After a kill at any moment, or beside other processes that run the
    same command on shared files, each photo is embedded once. `topwork-train fit --embeddings`
    makes of the parts the revision that it would make of the photos.
    """
    from topwork_trainer.embedding import embed as module

    if model and backbone:
        raise InvalidInput("give --model or --backbone, not both", field="backbone")
    config = module.EmbedConfig(
        data=data,
        model=model,
        backbone=backbone or backbones.DEFAULT,
        classes=split_names(classes),
        **options,
    )
    with progress.counter("embed") as begin:
        result = module.embed_photos(config, begin)
    facts = {
        "out": file_name(config.out),
        "photos": result.plan.photos,
        "embedded_now": result.embedded_now,
        "parts": result.plan.parts,
        "backbone": result.backbone.name,
        "width": result.backbone.width,
    }
    if as_json:
        print(json.dumps(facts))
    else:
        tables.console().print(
            f"{facts['photos']} photos in {facts['parts']} parts in {facts['out']}, "
            f"{facts['embedded_now']} of them embedded now; {result.backbone.name}, "
            f"{result.backbone.width} numbers",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
