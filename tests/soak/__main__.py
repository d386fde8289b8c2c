"""Command line of the soak test: ``PYTHONPATH=tests python -m soak --help``."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from soak import tables
from soak.place import PLACES
from soak.soak import soak


@click.command(context_settings={"show_default": True})
@click.option("--kills", default=120, type=click.IntRange(min=1), help="Number of kills.")
@click.option(
    "--minutes",
    default=20.0,
    type=click.FloatRange(min=0, min_open=True),
    help="Time limit; fails if there were fewer kills by then.",
)
@click.option("--seed", type=int, help="Default: random; it is printed.")
@click.option(
    "--place",
    default="files",
    type=click.Choice([*PLACES]),
    help="files: a directory and SQLite; bucket: SeaweedFS, which is killed too, and PostgreSQL.",
)
def main(kills: int, minutes: float, seed: int | None, place: str) -> None:
    """Kill server, worker or both repeatedly while clients change and query three models.

    Exits with 1 and leaves the repository if a promise was broken.
    """
    seed = random.randrange(10**6) if seed is None else seed
    console = Console(width=110)
    console.print(f"seed {seed}")
    root = Path(tempfile.mkdtemp(prefix="topwork-soak-"))
    with PLACES[place](root) as repository, console.status("") as status:
        result = soak(
            repository,
            root / "armed",
            kills=kills,
            minutes=minutes,
            seed=seed,
            on_kill=lambda done: status.update(f"{done} of {kills} kills"),
        )
    tables.show(result, console)
    if result.ledger.violations:
        console.print(f"the repository is in {root}", soft_wrap=True)
        sys.exit(1)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
