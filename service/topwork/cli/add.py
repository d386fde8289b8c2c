"""``topwork add-class`` and ``topwork add-examples``: changes that upload photos."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import click
from google.longrunning import operations_pb2

from topwork import Client
from topwork.cli.follow import follow, print_result, progress_bar
from topwork.cli.options import (
    ServerOptions,
    change_options,
    connected,
    json_output,
    model_option,
    photo_files,
    read_photo,
    server_option,
)
from topwork.errors import ImageError
from topwork.inputs.folders import Omitted, group
from topwork.printable import file_name
from topwork.terminal import LocalPath
from topwork.v1 import change_pb2 as change_pb

photos_argument = click.argument(
    "photos", nargs=-1, required=True, type=LocalPath(exists=True, path_type=Path)
)
NamedImages = Iterable[tuple[str, bytes]]


@click.command("add-class")
@server_option
@model_option
@click.option("--label", required=True, help="Name of the new class.")
@change_options
@json_output
@photos_argument
def add_class(
    server: ServerOptions,
    model: str,
    label: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
    photos: tuple[Path, ...],
) -> None:
    """Add a class to a live model from PHOTOS (files or folders).

    Unreadable photos are listed and left out. --json prints one object at the end: operation,
    revision, labels, metrics, comparison, left_out and more. Exit status 1 if the class was not
    added.
    """

    def call(client: Client, images: NamedImages) -> operations_pb2.Operation:
        return client.add_class(model, label, images, request_id=request_id, options=options)

    _upload(server, photos, call, as_json=as_json)


@click.command("add-examples")
@server_option
@model_option
@click.option("--label", required=True, help="Name of the class.")
@change_options
@json_output
@photos_argument
def add_examples(
    server: ServerOptions,
    model: str,
    label: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
    photos: tuple[Path, ...],
) -> None:
    """Add PHOTOS (files or folders) to a class of a live model.

    Photos that the class already has are listed and change nothing. Otherwise like add-class.
    """

    def call(client: Client, images: NamedImages) -> operations_pb2.Operation:
        return client.add_examples(model, label, images, request_id=request_id, options=options)

    _upload(server, photos, call, as_json=as_json)


def _upload(
    server: ServerOptions,
    photos: Sequence[Path],
    call: Callable[[Client, NamedImages], operations_pb2.Operation],
    *,
    as_json: bool,
) -> None:
    listing = photo_files(photos, field="photos", one_class=True)
    files = listing.files
    unreadable: dict[Path, str] = {}
    start = time.perf_counter()
    with connected(server) as client, progress_bar() as bar:
        upload = bar.add_task("uploading", total=len(files))
        accepted = call(client, _read(files, unreadable, lambda: bar.advance(upload)))
        finished = follow(client, accepted, bar)
    seconds = time.perf_counter() - start
    for path, error in unreadable.items():
        click.echo(f"left out {file_name(path)}: {error}", err=True)
    omitted = (*listing.omitted, *(Omitted("unreadable", path) for path in unreadable))
    print_result(finished, seconds, group(omitted), as_json=as_json)


def _read(
    files: Sequence[Path], unreadable: dict[Path, str], on_file: Callable[[], None]
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file; add the errors of the others to ``unreadable``."""
    for path in files:
        try:
            content = read_photo(path)
        except ImageError as error:
            unreadable[path] = str(error)
        else:
            yield file_name(path), content
        on_file()
