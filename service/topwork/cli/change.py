"""``topwork remove-class``, ``rename-class``, ``retrain``: change a live model without photos."""

from __future__ import annotations

import time
from typing import get_args

import click

from topwork.bundle.recipe import HeadKind, Normalisation
from topwork.cli.follow import see_through
from topwork.cli.options import (
    ServerAt,
    change_options,
    connected,
    json_output,
    model_option,
    server_option,
)
from topwork.v1 import change_pb2 as change_pb

label_option = click.option("--label", required=True, help="A class that the model has.")


@click.command("remove-class")
@server_option
@model_option
@label_option
@change_options
@json_output
def remove_class(
    server: ServerAt,
    model: str,
    label: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
) -> None:
    """Remove a class: the model becomes what it would be without that class's photos.

    Exit status 1 if the class was not removed.
    """
    start = time.perf_counter()
    with connected(server) as client:
        accepted = client.remove_class(model, label, request_id=request_id, options=options)
        see_through(client, accepted, start, as_json=as_json)


@click.command("rename-class")
@server_option
@model_option
@label_option
@click.option("--new-label", required=True, help="Its new name.")
@change_options
@json_output
def rename_class(
    server: ServerAt,
    model: str,
    label: str,
    new_label: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
) -> None:
    """Rename a class of a live model. Exit status 1 if it was not renamed."""
    start = time.perf_counter()
    with connected(server) as client:
        accepted = client.rename_class(
            model, label, new_label, request_id=request_id, options=options
        )
        see_through(client, accepted, start, as_json=as_json)


@click.command()
@server_option
@model_option
@click.option(
    "--head",
    type=click.Choice(["auto", *get_args(HeadKind)]),
    help="Kind of head. Default: as the serving revision was asked for.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["auto", *get_args(Normalisation)]),
    help="What happens to embeddings first. Default: as --head.",
)
@change_options
@json_output
def retrain(
    server: ServerAt,
    model: str,
    head: str | None,
    normalisation: str | None,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
) -> None:
    """Train a live model's head again, on the photos that it has. Exit status 1 if it failed."""
    start = time.perf_counter()
    with connected(server) as client:
        accepted = client.retrain(
            model,
            head=head or "",
            normalisation=normalisation or "",
            request_id=request_id,
            options=options,
        )
        see_through(client, accepted, start, as_json=as_json)
