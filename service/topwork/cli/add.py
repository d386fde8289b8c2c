"""``topwork add-class``, ``add-classes`` and ``add-examples``: changes that upload inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import click
from google.longrunning import operations_pb2

from topwork import Client
from topwork.cli.follow import follow, print_result, progress_bar
from topwork.cli.input_files import list_inputs
from topwork.cli.input_kinds import Item
from topwork.cli.labelled_data import Source, read_data
from topwork.cli.options import (
    ServerOptions,
    change_options,
    connected,
    json_output,
    model_option,
    server_option,
)
from topwork.client.inputs import Content
from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.inputs.folders import Reason, by_reason
from topwork.printable import file_name, printable
from topwork.terminal import LocalPath
from topwork.v1 import change_pb2 as change_pb

photos_argument = click.argument(
    "photos", nargs=-1, required=True, type=LocalPath(exists=True, path_type=Path)
)
NamedImages = Iterable[tuple[str, Content]]
Files = Sequence[Item]
Reader = Callable[[Files], NamedImages]
"""Reads files, and leaves the unreadable ones out."""


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

    For a model of texts PHOTOS are files .txt, one text each, in UTF-8; for a model of embeddings
    files of NumPy, .npy or .npz, with float32 (N, D). Unreadable photos are listed and left out.
    --json prints one object at the end: operation, revision, labels, metrics, comparison, left_out
    and more. Exit status 1 if the class was not added.
    """

    def call(client: Client, images: NamedImages) -> operations_pb2.Operation:
        return client.add_class(model, label, images, request_id=request_id, options=options)

    _upload_files(server, photos, call, as_json=as_json)


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

    They are photos, texts or embeddings, as for add-class. Photos that the class already has are
    listed and change nothing. Otherwise like add-class.
    """

    def call(client: Client, images: NamedImages) -> operations_pb2.Operation:
        return client.add_examples(model, label, images, request_id=request_id, options=options)

    _upload_files(server, photos, call, as_json=as_json)


@click.command("add-classes")
@server_option
@model_option
@change_options
@json_output
@click.argument("data", type=LocalPath(exists=True, path_type=Path))
def add_classes(
    server: ServerOptions,
    model: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
    data: Path,
) -> None:
    """Add all classes of DATA to a live model, in one change.

    DATA is as for `topwork-train fit`, such as a folder with one folder of photos or of texts .txt
    per class, or one .npz or .parquet file with embeddings; of data with splits the split train is
    used. Classes that the model has already get the photos that are new. All classes are served
    together, or none if the gate rejects one. Otherwise like add-class.
    """
    labelled = read_data(data)
    source, found = labelled.source, labelled.found
    files: dict[str, Files] = {
        label: [(photo.name, partial(_read, source, photo)) for photo in found.train.photos[label]]
        for label in sorted(found.train.classes())
    }
    if not any(files.values()):
        text = f"{file_name(data)} has no labelled {source.kind.noun} to add"
        raise InvalidInput(text, field="data")
    for line in (*found.notes, *(group.line() for group in by_reason(found.omitted))):
        click.echo(printable(line), err=True)

    def call(client: Client, read: Reader) -> operations_pb2.Operation:
        classes = {label: read(own) for label, own in files.items()}
        return client.add_classes(model, classes, request_id=request_id, options=options)

    _upload(server, sum(map(len, files.values())), call, found.omitted, as_json=as_json)


def _upload_files(
    server: ServerOptions,
    photos: Sequence[Path],
    call: Callable[[Client, NamedImages], operations_pb2.Operation],
    *,
    as_json: bool,
) -> None:
    inputs = list_inputs(photos, field="photos", one_class=True)
    _upload(
        server,
        len(inputs.items),
        lambda client, read: call(client, read(inputs.items)),
        inputs.left_out,
        as_json=as_json,
    )


def _upload(
    server: ServerOptions,
    total: int,
    call: Callable[[Client, Reader], operations_pb2.Operation],
    left_out: Sequence[tuple[Reason, str]],
    *,
    as_json: bool,
) -> None:
    """Make ``call``, which passes its files to a reader, and follow its operation."""
    unreadable: dict[str, str] = {}

    def read(files: Files) -> Iterator[tuple[str, Content]]:
        for name, content in files:
            try:
                yield name, content()
            except ImageError as error:
                unreadable[name] = str(error)
            bar.advance(upload)

    start = time.perf_counter()
    with connected(server) as client, progress_bar() as bar:
        upload = bar.add_task("uploading", total=total)
        finished = follow(client, call(client, read), bar)
    seconds = time.perf_counter() - start
    for name, error in unreadable.items():
        click.echo(f"left out {name}: {error}", err=True)
    omitted = (*left_out, *(("unreadable", name) for name in unreadable))
    print_result(finished, seconds, by_reason(omitted), as_json=as_json)


def _read(source: Source, photo: Photo) -> Content:
    """Return an input as it is sent. Raises ImageError if it cannot be read."""
    try:
        return source.content(photo)
    except OSError as error:
        raise ImageError(f"{photo.name} cannot be read: {error.strerror}") from error
