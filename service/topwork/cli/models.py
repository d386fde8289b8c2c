"""``topwork models`` and ``topwork describe``: the models of a server."""

from __future__ import annotations

import json

import click

from topwork import tables
from topwork.cli import show
from topwork.cli.options import ServerOptions, connected, json_output, server_option


@click.command()
@server_option
@json_output
def models(server: ServerOptions, as_json: bool) -> None:
    """List the models of a server."""
    headers = ("model", "revision", "labels", "images", "accuracy (95 % interval)", "backbone")
    rows: list[tuple[str, ...]] = []
    with connected(server) as client:
        for model in client.models():
            revision = model.serving_revision
            if as_json:
                print(json.dumps(show.model_json(model)))
            else:
                rows.append(
                    (
                        model.name.removeprefix("models/"),
                        str(revision.revision or "-"),
                        str(len(revision.labels or model.draft.labels)),
                        str(revision.metrics.images or model.draft.images),
                        show.accuracy(revision.metrics),
                        revision.backbone.name or model.draft.backbone.name,
                    )
                )
    if not as_json:
        tables.console().print(tables.table(headers, rows, copied=["model"]))


@click.command()
@server_option
@json_output
@click.argument("model")
def describe(server: ServerOptions, as_json: bool, model: str) -> None:
    """Show a model: precision and recall of each label, revisions, backbone, limits."""
    with connected(server) as client:
        found = client.model(model)
    if as_json:
        print(json.dumps(show.model_json(found)))
    else:
        show.model(tables.console(), found)
