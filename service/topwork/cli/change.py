"""``topwork remove-class``, ``rename-class``, ``retrain``: changes without an upload."""

from __future__ import annotations

import time
from typing import get_args

import click

from topwork.bundle.recipe import HeadKind, Normalisation
from topwork.cli.follow import follow_and_print
from topwork.cli.options import (
    ServerOptions,
    change_options,
    connected,
    json_output,
    model_option,
    server_option,
)
from topwork.v1 import change_pb2 as change_pb

label_option = click.option("--label", required=True, help="Name of the class.")


@click.command("remove-class")
@server_option
@model_option
@label_option
@change_options
@json_output
def remove_class(
    server: ServerOptions,
    model: str,
    label: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
) -> None:
    """Remove a class from a live model.

    The new head is the one that `topwork-train fit` gives without the photos of the class. Exit
    status 1 if the class was not removed.
    """
    start = time.perf_counter()
    with connected(server) as client:
        accepted = client.remove_class(model, label, request_id=request_id, options=options)
        follow_and_print(client, accepted, start, as_json=as_json)


@click.command("rename-class")
@server_option
@model_option
@label_option
@click.option("--new-label", required=True, help="New name of the class.")
@change_options
@json_output
def rename_class(
    server: ServerOptions,
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
        follow_and_print(client, accepted, start, as_json=as_json)


@click.command()
@server_option
@model_option
@click.option(
    "--head",
    type=click.Choice(["auto", *get_args(HeadKind)]),
    help="Kind of head. Default: the setting of the serving revision.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["auto", *get_args(Normalisation)]),
    help="Normalisation of embeddings. Default: the setting of the serving revision.",
)
@change_options
@json_output
def retrain(
    server: ServerOptions,
    model: str,
    head: str | None,
    normalisation: str | None,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
) -> None:
    """Train a live model's head again on its stored exemplars. Exit status 1 if it failed."""
    start = time.perf_counter()
    with connected(server) as client:
        accepted = client.retrain(
            model,
            head=head or "",
            normalisation=normalisation or "",
            request_id=request_id,
            options=options,
        )
        follow_and_print(client, accepted, start, as_json=as_json)
