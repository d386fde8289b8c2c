"""``topwork add-class``: teach a live model a new label."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from google.longrunning import operations_pb2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from topwork.cli import show
from topwork.cli.options import (
    address,
    connected,
    json_output,
    model_option,
    photo_files,
    read_photo,
)
from topwork.errors import ImageError, InvalidInput
from topwork.rpc.client import CallFailed, Client, progress, result
from topwork.v1 import model_service_pb2 as model_pb


@click.command("add-class")
@address
@model_option
@click.option("--label", required=True, help="The new class's name.")
@click.option("--request-id", default="", help="A UUID: a repeated call is the same operation.")
@json_output
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def add_class(
    address: str,
    model: str,
    label: str,
    request_id: str,
    as_json: bool,
    photos: tuple[Path, ...],
) -> None:
    """Teach a live model a new class from PHOTOS (files, or directories of them).

    Unreadable photos are named and left out. With --json, ends with one object: operation,
    revision, labels, metrics. Exit status 1 if the class was not added.
    """
    files = photo_files(photos)
    if not files:
        raise InvalidInput(f"there is no file below {', '.join(map(str, photos))}", field="photos")
    unreadable: list[str] = []
    start = time.perf_counter()
    with connected(address) as client, _progress_bar() as bar:
        upload = bar.add_task("uploading", total=len(files))
        photos_read = _read(files, unreadable, lambda: bar.advance(upload))
        accepted = client.add_class(model, label, photos_read, request_id=request_id)
        bar.console.print(f"accepted as {accepted.name}", highlight=False)
        finished = _follow(client, accepted, bar)
    seconds = time.perf_counter() - start
    for text in unreadable:
        click.echo(f"left out {text}", err=True)
    try:
        response = result(finished)
    except CallFailed as error:
        if as_json:
            print(json.dumps({"operation": accepted.name, "error": str(error)}))
        raise
    if as_json:
        print(json.dumps(show.added_json(accepted.name, response, seconds)))
    else:
        show.added(Console(), label, response, seconds)


def _read(
    files: Sequence[Path], unreadable: list[str], on_file: Callable[[], None]
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file; those that cannot be read are said in ``unreadable``."""
    for path in files:
        try:
            content = read_photo(path)
        except ImageError as error:
            unreadable.append(f"{path}: {error}")
        else:
            yield str(path), content
        on_file()


def _follow(
    client: Client, accepted: operations_pb2.Operation, bar: Progress
) -> operations_pb2.Operation:
    """Show an operation's progress and return it when it is finished."""
    task = bar.add_task("queued", total=None)
    for operation in client.watch(accepted.name):
        state = progress(operation)
        stage = model_pb.AddClassStage.Name(state.stage).removeprefix("ADD_CLASS_STAGE_").lower()
        bar.update(task, description=stage)
        if state.total:
            bar.update(task, total=state.total, completed=state.done)
        accepted = operation
    bar.update(task, total=1, completed=1)
    return accepted


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
