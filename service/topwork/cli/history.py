"""``topwork history``, ``rollback`` and ``pin-revision``: what served, and what shall."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from topwork import tables
from topwork.cli import show
from topwork.cli.options import (
    ServerAt,
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
def history(server: ServerAt, as_json: bool, model: str) -> None:
    """Show a model's revisions, newest first, and when each of them served.

    With --json, one object: model, serving, revisions, moves.
    """
    with connected(server) as client:
        found = client.model(model)
        revisions = list(client.revisions(model))
    if as_json:
        print(json.dumps(_history_json(found, revisions)))
        return
    console = tables.console()
    console.print(_revisions(found, revisions), "", _moves(found))
    for one in revisions:
        for why in one.rejection:
            console.print(
                f"revision {one.revision} was rejected: {why}",
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
    help="What shall serve; 0: what served before the revision that does.",
)
@expected_revision_option
@validate_only_option
@json_output
def rollback(
    server: ServerAt,
    model: str,
    revision: int,
    expected_revision: int,
    validate_only: bool,
    as_json: bool,
) -> None:
    """Let an earlier revision of a model serve again, at once."""
    with connected(server) as client:
        found = client.rollback(
            model, revision, expected_revision=expected_revision, validate_only=validate_only
        )
    _tell(found, as_json=as_json)


@click.command("pin-revision")
@server_option
@model_option
@click.option("--revision", required=True, type=click.IntRange(min=1), help="What to keep.")
@click.option("--unpin", is_flag=True, help="Keep it no longer.")
@validate_only_option
@json_output
def pin_revision(
    server: ServerAt, model: str, revision: int, unpin: bool, validate_only: bool, as_json: bool
) -> None:
    """Keep a revision of a model for good: `topwork gc` never deletes it."""
    with connected(server) as client:
        found = client.pin_revision(model, revision, unpin=unpin, validate_only=validate_only)
    _tell(found, as_json=as_json)


def _tell(found: model_pb.Model, *, as_json: bool) -> None:
    """Print what serves and what is kept."""
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
                "revision": one.revision,
                "parent": one.parent_revision,
                "change": one.change,
                "operation": one.operation,
                "created": _time(one.create_time),
                "labels": list(one.labels),
                "images": one.metrics.images,
                "accuracy": one.metrics.accuracy,
                "pinned": one.revision in found.pinned_revisions,
                "rejection": list(one.rejection),
            }
            for one in revisions
        ],
        "moves": [
            {
                "revision": one.revision,
                "previous": one.previous_revision,
                "cause": one.cause,
                "operation": one.operation,
                "time": _time(one.time),
            }
            for one in found.moves
        ],
    }


def _revisions(found: model_pb.Model, revisions: Sequence[revision_pb.Revision]) -> Table:
    headers = ("revision", "", "of", "change", "published", "labels", "images", "accuracy (95 %)")
    rows = []
    for one in revisions:
        state = [
            said
            for said, so in (
                ("serves", one.revision == found.serving_revision.revision),
                ("pinned", one.revision in found.pinned_revisions),
                ("rejected", bool(one.rejection)),
                ("damaged", not one.labels),
            )
            if so
        ]
        rows.append(
            (
                str(one.revision),
                ", ".join(state),
                str(one.parent_revision or "-"),
                one.change.replace("_", " "),
                show.moment(_time(one.create_time)),
                str(len(one.labels)),
                str(one.metrics.images),
                show.accuracy(one.metrics),
            )
        )
    return tables.table(headers, rows, copied=["revision"])


def _moves(found: model_pb.Model) -> Table:
    rows = [
        (
            show.moment(_time(one.time)),
            str(one.revision),
            str(one.previous_revision or "-"),
            one.cause.replace("_", " "),
            one.operation.removeprefix("operations/"),
        )
        for one in found.moves
    ]
    return tables.table(
        ("since", "serves", "before", "cause", "operation"), rows, copied=["operation"]
    )


def _time(moment: Timestamp) -> str:
    return moment.ToDatetime().isoformat(timespec="seconds") + "Z"
