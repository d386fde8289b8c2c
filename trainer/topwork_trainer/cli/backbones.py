"""Commands ``backbones`` and ``describe``: the catalogue of backbones, and one in detail."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from topwork import tables
from topwork.bundle.opening import open_repository
from topwork.bundle.store import Repository
from topwork.errors import TopworkError
from topwork.repository_option import repository_option
from topwork.storage.location import Location
from topwork_trainer import backbones
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.cli import progress
from topwork_trainer.cli.options import cache_option

if TYPE_CHECKING:
    from topwork_trainer.backbones.catalogue import Row


@click.command("backbones")
@click.argument("pattern", default="*")
@click.option("--all", "everything", is_flag=True, help="Also list backbones to download.")
@repository_option("Repository whose added backbones are listed, too.", exists=False)
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def list_backbones(
    pattern: str, everything: bool, repository: Location | None, cache: Path | None, as_json: bool
) -> None:
    """List the backbones on this machine, for --backbone, with size, speed and licence.

    PATTERN selects names, such as 'resnet*'. With --all or a PATTERN the list has torchvision's
    backbones, whose weights are downloaded when they are used; 'timm/*' are those of timm. The
    milliseconds are those to embed an image, a text of 64 tokens, or a window of audio, on one core
    of this machine; if they are not known yet, the backbone is exported first. MB is the size of
    the network.
    """
    from topwork_trainer.backbones import catalogue
    from topwork_trainer.backbones.timm_import import names as timm_names

    own = backbones.available()
    others: list[str] = []
    if everything or pattern != "*":
        others = timm_names() if pattern.startswith("timm/") else backbones.names()
    here, others = (
        [name for name in names if fnmatchcase(name, pattern)]
        for names in (own, [name for name in others if name not in own])
    )
    failed = {}
    with tempfile.TemporaryDirectory() as temporary, progress.bar("measure", len(here)) as advance:
        store = Repository(Path(temporary))
        rows = catalogue.added(open_repository(repository)) if repository else []
        rows = [row for row in rows if fnmatchcase(row.name, pattern)]
        for name in here:
            try:
                rows.append(catalogue.measure(name, store, Exports(cache) if cache else None))
            except TopworkError as error:
                failed[name] = str(error)
            advance()
    rows += map(catalogue.describe, others)
    if as_json:
        print(json.dumps({"backbones": [asdict(row) for row in rows], "failed": failed}))
        return
    console = tables.console()
    columns = ("backbone", "input", "width", "MB", "ms", "licence", "weights")
    cells = [
        (
            row.name,
            _size(row),
            str(row.width),
            f"{row.megabytes:.0f}",
            "" if row.milliseconds is None else f"{row.milliseconds:.1f}",
            row.licence,
            row.weights,
        )
        for row in rows
    ]
    console.print(tables.table(columns, cells, copied=["backbone"]))
    for name, why in failed.items():
        console.print(f"{name} cannot be used: {why}", markup=False, soft_wrap=True)
    if not others:
        console.print("--all lists others, whose weights are downloaded", highlight=False)


def _size(row: Row) -> str:
    if row.max_tokens:
        return f"{row.max_tokens} tokens"
    return f"{row.audio_rate} Hz" if row.audio_rate else str(row.image_size)


@click.command()
@click.argument("backbone")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PyTorch state dict to load instead of the published weights.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def describe(backbone: str, weights: Path | None, as_json: bool) -> None:
    """Show the input size, embedding width, licence and stages of a backbone.

    Stages are numbered from the output side, as `topwork-train fit --unfreeze last:N` counts them.
    """
    from topwork_trainer.backbones.stages import stages

    loaded = backbones.load(replace(backbones.parse(backbone), weights=weights))
    found_stages = stages(loaded.module)
    if as_json:
        print(
            json.dumps(
                {
                    "name": loaded.name,
                    "image_size": loaded.spec.crop,
                    "width": loaded.width,
                    "licence": loaded.licence,
                    "source": loaded.source,
                    "stages": [
                        {"name": stage.name, "parameters": stage.size} for stage in found_stages
                    ],
                }
            )
        )
        return
    rows = []
    total = 0
    for number, stage in enumerate(found_stages, start=1):
        total += stage.size
        rows.append((f"last:{number}", stage.name, f"{stage.size:,}", f"{total:,}"))
    console = tables.console()
    console.print(
        f"{loaded.name}: input {loaded.spec.crop} x {loaded.spec.crop}, embedding {loaded.width}, "
        f"weights {loaded.licence} ({loaded.source})",
        highlight=False,
    )
    console.print(tables.table(("--unfreeze", "stage", "parameters", "total"), rows))
