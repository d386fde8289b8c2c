"""The commands ``demo``, ``demo-data`` and ``fetch``: something to learn from, and the story."""

from __future__ import annotations

from pathlib import Path

import click

from topwork import tables
from topwork.terminal import Console
from topwork_trainer.cli import progress

held_out_option = click.option(
    "--held-out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for every fourth of each kind, to be classified and never learnt from.",
)


@click.command("demo-data")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@held_out_option
@click.option("--images-per-label", default=120, type=click.IntRange(min=1))
@click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1))
def demo_data(directory: Path, held_out: Path | None, images_per_label: int, seed: int) -> None:
    """Render photos of five kinds of flowers into DIRECTORY. They are drawn, not taken."""
    from topwork_trainer.demo import render, story
    from topwork_trainer.demo.flowers import LABELS

    if held_out is not None:
        story.check_apart(directory, held_out)
    total = images_per_label * len(LABELS)
    with progress.bar("rendering", total) as advance:
        render.write_dataset(
            directory, images_per_label=images_per_label, seed=seed, on_done=advance
        )
    if held_out is not None:
        story.hold_out(directory, held_out)
    Console(stderr=True).print(
        f"{total} rendered pictures of {len(LABELS)} kinds of flowers in {directory}"
        f"{_and(held_out)} (drawn by a program: no photos)",
        highlight=False,
    )


@click.command()
@click.argument("name")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@held_out_option
def fetch(name: str, directory: Path, held_out: Path | None) -> None:
    """Download real photos: NAME is flower_photos or flowers102."""
    from topwork_trainer.demo import fetch as fetching
    from topwork_trainer.demo import story

    if held_out is not None:
        story.check_apart(directory, held_out)
    photos = fetching.fetch(name, directory)
    if held_out is not None:
        story.hold_out(directory, held_out)
    Console(stderr=True).print(f"{photos} photos in {directory}{_and(held_out)}", highlight=False)


@click.command()
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--new", help="The class that AddClass adds. Default: the alphabetically last.")
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), help="Default: a temporary folder."
)
def demo(data: Path | None, new: str | None, work: Path | None) -> None:
    """Tell the whole story: fit all classes but one, serve, classify, add the last, classify.

    On the photos in DATA, a folder with a folder for each class; without it on rendered flowers.
    """
    from topwork_trainer.demo import story

    story.tell(data, new=new, work=work, console=tables.console())


def _and(held_out: Path | None) -> str:
    return "" if held_out is None else f" and {held_out}"
