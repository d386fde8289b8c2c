"""Commands ``backbones`` and ``describe``: the catalogue of backbones, and one in detail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from topwork import tables
from topwork_trainer import backbones


@click.command("backbones")
def list_backbones() -> None:
    """List the names of all backbones, for --backbone."""
    for name in backbones.names():
        print(name)


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
