"""``topwork history``, ``rollback`` and ``pin-revision``: the revisions of a model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from topwork import CallFailed, Client, tables
from topwork.cli import show, show_result
from topwork.cli.options import (
    ServerOptions,
    connected,
    expected_revision_option,
    json_output,
    model_option,
    server_option,
    validate_only_option,
)
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import revision_pb2 as revision_pb


@click.command()
@server_option
@json_output
@click.argument("model")
def history(server: ServerOptions, as_json: bool, model: str) -> None:
    """List a model's revisions, newest first, and the times from which they served.

    --json prints one object: model, serving, revisions, moves.
    """
    with connected(server) as client:
        found = client.model(model)
        revisions = list(client.revisions(model))
    if as_json:
        print(json.dumps(_history_json(found, revisions)))
        return
    console = tables.console()
    console.print(_revisions(found, revisions), "", _moves(found))
    for revision in revisions:
        for reason in revision.rejection:
            console.print(
                f"revision {revision.revision} was rejected: {reason}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


@click.command()
@server_option
@model_option
@click.option(
    "--revision",
    default=0,
    type=click.IntRange(min=0),
    help="Revision to serve; 0: the one that served before the current one.",
)
@expected_revision_option
@validate_only_option
@json_output
def rollback(
    server: ServerOptions,
    model: str,
    revision: int,
    expected_revision: int,
    validate_only: bool,
    as_json: bool,
) -> None:
    """Make an earlier revision of a model serve again.

    No gate judges a rollback; the results of both revisions on evaluation sets are printed.
    """
    with connected(server) as client:
        before = client.model(model).serving_revision.revision
        found = client.rollback(
            model, revision, expected_revision=expected_revision, validate_only=validate_only
        )
        _print_state(found, as_json=as_json)
        if not as_json:
            with contextlib.suppress(CallFailed):  # a server of an earlier release has no sets
                _print_evaluations(client, model, {before, found.serving_revision.revision})


@click.command("pin-revision")
@server_option
@model_option
@click.option("--revision", required=True, type=click.IntRange(min=1), help="Revision to protect.")
@click.option("--unpin", is_flag=True, help="Remove the protection.")
@validate_only_option
@json_output
def pin_revision(
    server: ServerOptions,
    model: str,
    revision: int,
    unpin: bool,
    validate_only: bool,
    as_json: bool,
) -> None:
    """Protect a revision of a model from `topwork gc`."""
    with connected(server) as client:
        found = client.pin_revision(model, revision, unpin=unpin, validate_only=validate_only)
    _print_state(found, as_json=as_json)


def _print_evaluations(client: Client, model: str, revisions: Collection[int]) -> None:
    """Print the stored results of revisions on evaluation sets: a rollback passes no gate."""
    found = [row for number in revisions for row in client.list_evaluations(model, revision=number)]
    if found:
        rows = sorted(found, key=lambda row: (show_result.set_name(row.name), -row.revision))
        tables.console().print(show_result.results(rows, named=True))


def _print_state(found: model_pb.Model, *, as_json: bool) -> None:
    """Print the serving revision and the pinned ones."""
    state = {
        "model": found.name.removeprefix("models/"),
        "serving": found.serving_revision.revision,
        "pinned": list(found.pinned_revisions),
    }
    if as_json:
        print(json.dumps(state))
    else:
        print(
            f"{state['model']}: revision {state['serving']} serves; "
            f"pinned: {state['pinned'] or 'none'}"
        )


def _history_json(
    found: model_pb.Model, revisions: Sequence[revision_pb.Revision]
) -> dict[str, Any]:
    return {
        "model": found.name.removeprefix("models/"),
        "serving": found.serving_revision.revision,
        "revisions": [
            {
                "revision": revision.revision,
                "parent": revision.parent_revision,
                "change": revision.change,
                "operation": revision.operation,
                "created": _time(revision.create_time),
                "labels": list(revision.labels),
                "images": revision.metrics.images,
                "accuracy": revision.metrics.accuracy,
                "pinned": revision.revision in found.pinned_revisions,
                "rejection": list(revision.rejection),
            }
            for revision in revisions
        ],
        "moves": [
            {
                "revision": move.revision,
                "previous": move.previous_revision,
                "cause": move.cause,
                "operation": move.operation,
                "time": _time(move.time),
            }
            for move in found.moves
        ],
    }


def _revisions(found: model_pb.Model, revisions: Sequence[revision_pb.Revision]) -> Table:
    headers = ("revision", "", "of", "change", "published", "labels", "images", "accuracy (95 %)")
    rows = []
    for revision in revisions:
        states = (
            ("serves", revision.revision == found.serving_revision.revision),
            ("pinned", revision.revision in found.pinned_revisions),
            ("rejected", bool(revision.rejection)),
            ("damaged", not revision.labels),
        )
        rows.append(
            (
                str(revision.revision),
                ", ".join(name for name, holds in states if holds),
                str(revision.parent_revision or "-"),
                revision.change.replace("_", " "),
                show.moment(_time(revision.create_time)),
                str(len(revision.labels)),
                str(revision.metrics.images),
                show.accuracy(revision.metrics),
            )
        )
    return tables.table(headers, rows, copied=["revision"])


def _moves(found: model_pb.Model) -> Table:
    rows = [
        (
            show.moment(_time(move.time)),
            str(move.revision),
            str(move.previous_revision or "-"),
            move.cause.replace("_", " "),
            move.operation.removeprefix("operations/"),
        )
        for move in found.moves
    ]
    return tables.table(
        ("since", "serves", "before", "cause", "operation"), rows, copied=["operation"]
    )


def _time(moment: Timestamp) -> str:
    return moment.ToDatetime().isoformat(timespec="seconds") + "Z"
