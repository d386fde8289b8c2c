"""``topwork operations``: list, watch and cancel changes of models."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from google.longrunning import operations_pb2

from topwork import CallFailed, progress, tables
from topwork.cli import show, show_change
from topwork.cli.follow import follow_and_print
from topwork.cli.options import ServerOptions, connected, json_output, server_option
from topwork.command_group import example

operation_argument = click.argument("operation")


@click.group()
def operations() -> None:
    """List, watch and cancel changes of models."""


@operations.command("list", epilog=example("topwork operations list --filter 'done = false'"))
@server_option
@click.option(
    "--filter",
    "query",
    default="",
    show_default=False,
    help='Filter, such as: model = "models/flowers" AND done = false. Fields: model, label, kind, '
    "done, validate_only.",
)
@json_output
def list_operations(server: ServerOptions, query: str, as_json: bool) -> None:
    """List operations, oldest first."""
    headers = ("operation", "model", "change", "state", "accepted", "s")
    rows: list[tuple[str, ...]] = []
    with connected(server) as client:
        for operation in client.operations(query):
            row = _row(operation)
            if as_json:
                print(json.dumps(row))
            else:
                new = f"-> {row['new_label']}" if row["new_label"] else ""
                rows.append(
                    (
                        row["operation"].removeprefix("operations/"),
                        row["model"],
                        " ".join([row["kind"].replace("_", " "), row["label"], new]).strip(),
                        row["state"],
                        show.moment(row["accepted"]),
                        f"{row['seconds']:.1f}",
                    )
                )
    if not as_json:
        tables.console().print(tables.table(headers, rows, copied=["operation", "model"]))


@operations.command(epilog=example("topwork operations watch OPERATION"))
@server_option
@json_output
@operation_argument
def watch(server: ServerOptions, as_json: bool, operation: str) -> None:
    """Show an operation's progress, then its result.

    Exit status 1 if it failed.
    """
    start = time.perf_counter()
    with connected(server) as client:
        accepted = operations_pb2.Operation(name=_name(operation))
        follow_and_print(client, accepted, start, as_json=as_json)


@operations.command(epilog=example("topwork operations cancel OPERATION"))
@server_option
@operation_argument
def cancel(server: ServerOptions, operation: str) -> None:
    """Cancel an operation before its next step.

    A finished operation is not changed.
    """
    with connected(server) as client:
        client.cancel(_name(operation))


def _name(operation: str) -> str:
    """Return the resource name of an operation, from its name or its id."""
    return operation if operation.startswith("operations/") else f"operations/{operation}"


def _row(operation: operations_pb2.Operation) -> dict[str, Any]:
    metadata = progress(operation)
    error = CallFailed(operation.error) if operation.HasField("error") else None
    state = show_change.stage(metadata)
    return {
        "operation": operation.name,
        "kind": show_change.kind(metadata),
        "model": metadata.model.removeprefix("models/"),
        "label": metadata.label,
        "new_label": metadata.new_label,
        "validate_only": metadata.validate_only,
        "done": operation.done,
        "state": error.reason if error is not None else state,
        "error": str(error) if error is not None else None,
        "accepted": metadata.create_time.ToDatetime().isoformat(timespec="seconds") + "Z",
        "seconds": show_change.seconds_of(metadata.elapsed),
    }
