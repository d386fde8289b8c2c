"""The commands ``backbones`` and ``describe``: which there are, and what one is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from topwork import tables
from topwork_trainer import backbones


@click.command("backbones")
def list_backbones() -> None:
    """List the names that --backbone knows."""
    for name in backbones.names():
        print(name)


@click.command()
@click.argument("backbone")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="State dict to use instead of the backbone's published weights.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def describe(backbone: str, weights: Path | None, as_json: bool) -> None:
    """Show a backbone: its input, its embedding, and its stages, counted as --unfreeze does."""
    from topwork_trainer.backbones.stages import stages

    loaded = backbones.load(replace(backbones.parse(backbone), weights=weights))
    found = stages(loaded.module)
    if as_json:
        print(
            json.dumps(
                {
                    "name": loaded.name,
                    "image_size": loaded.spec.crop,
                    "width": loaded.width,
                    "licence": loaded.licence,
                    "source": loaded.source,
                    "stages": [{"name": one.name, "parameters": one.size} for one in found],
                }
            )
        )
        return
    rows = []
    total = 0
    for number, stage in enumerate(found, start=1):
        total += stage.size
        rows.append((f"last:{number}", stage.name, f"{stage.size:,}", f"{total:,}"))
    console = tables.console()
    console.print(
        f"{loaded.name}: input {loaded.spec.crop} x {loaded.spec.crop}, embedding {loaded.width}, "
        f"weights {loaded.licence} ({loaded.source})",
        highlight=False,
    )
    console.print(tables.table(("--unfreeze", "thaws also", "parameters", "in all"), rows))
