"""Commands ``demo``, ``demo-data`` and ``fetch``: the end-to-end demo and its data sets."""

from __future__ import annotations

from pathlib import Path

import click

from topwork import tables
from topwork.terminal import Console
from topwork_trainer.cli import progress

held_out_option = click.option(
    "--held-out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for every fourth photo of each class, held out to test the model.",
)


@click.command("demo-data")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@held_out_option
@click.option(
    "--images-per-label",
    default=120,
    type=click.IntRange(min=1),
    help="Number of pictures of each kind.",
)
@click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1), help="Seed of the renderer.")
def demo_data(directory: Path, held_out: Path | None, images_per_label: int, seed: int) -> None:
    """Render pictures of five kinds of flowers into DIRECTORY.

    A program draws them; they are not photos.
    """
    from topwork_trainer.demo import render, story
    from topwork_trainer.demo.flowers import LABELS

    if held_out is not None:
        story.check_not_inside(directory, held_out)
    total = images_per_label * len(LABELS)
    with progress.bar("rendering", total) as advance:
        render.write_dataset(
            directory, images_per_label=images_per_label, seed=seed, on_done=advance
        )
    if held_out is not None:
        story.hold_out(directory, held_out)
    Console(stderr=True).print(
        f"{total} rendered pictures of {len(LABELS)} kinds of flowers in {directory}"
        f"{_and(held_out)} (drawn by a program, not photos)",
        highlight=False,
    )


@click.command()
@click.argument("name")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@held_out_option
def fetch(name: str, directory: Path, held_out: Path | None) -> None:
    """Download the public data set NAME, flower_photos or flowers102, into DIRECTORY."""
    from topwork_trainer.demo import fetch as fetching
    from topwork_trainer.demo import story

    if held_out is not None:
        story.check_not_inside(directory, held_out)
    photos = fetching.fetch(name, directory)
    if held_out is not None:
        story.hold_out(directory, held_out)
    Console(stderr=True).print(f"{photos} photos in {directory}{_and(held_out)}", highlight=False)


@click.command()
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--new", help="Class to add with AddClass. Default: the last by name.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for photos, repository and server log. Default: a temporary folder.",
)
def demo(data: Path | None, new: str | None, work: Path | None) -> None:
    """Run the end-to-end demo: train, serve, classify, add a class, classify again.

    Uses the photos in DATA, a folder that contains one folder of photos per class; without DATA,
    rendered flowers. All classes except one are trained, and that one is added to the running
    server. The table at the end compares the model with one trained on all classes.
    """
    from topwork_trainer.demo import story

    story.run_demo(data, new=new, work=work, console=tables.console())


def _and(held_out: Path | None) -> str:
    return "" if held_out is None else f" and {held_out}"
