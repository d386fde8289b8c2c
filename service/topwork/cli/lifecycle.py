"""``topwork create``, ``copy``, ``delete``, ``undelete`` and ``backbones``."""

from __future__ import annotations

import json
from typing import get_args

import click

from topwork import tables
from topwork.bundle.recipe import HeadKind, Normalisation
from topwork.cli.options import ServerOptions, connected, json_output, server_option
from topwork.errors import InvalidInput
from topwork.v1 import model_lifecycle_pb2 as lifecycle_pb
from topwork.v1 import model_service_pb2 as model_pb

request_id_option = click.option(
    "--request-id",
    default="",
    show_default=False,
    help="Idempotency key, a UUID: a repeated call with the same id succeeds.",
)


@click.command()
@server_option
@click.option(
    "--backbone",
    default="",
    show_default=False,
    help="Digest or name, see `topwork backbones`. Default: the only one of the repository.",
)
@click.option(
    "--like", default="", show_default=False, help="Name of a model that has the backbone."
)
@click.option(
    "--space",
    default="",
    show_default=False,
    help="Name of what computes the embeddings that the model takes; it needs no backbone.",
)
@click.option(
    "--width", type=click.IntRange(min=1), help="Numbers of an embedding; only with --space."
)
@click.option("--seed", default=0, help="Seed of the folds of cross-validation.")
@click.option(
    "--head",
    default="auto",
    type=click.Choice(["auto", *get_args(HeadKind)]),
    help="Kind of head; auto: cross-validation chooses.",
)
@click.option(
    "--normalisation",
    default="auto",
    type=click.Choice(["auto", *get_args(Normalisation)]),
    help="Normalisation of embeddings; auto: cross-validation chooses.",
)
@request_id_option
@json_output
@click.argument("model")
def create(
    server: ServerOptions,
    backbone: str,
    like: str,
    space: str,
    width: int | None,
    seed: int,
    head: str,
    normalisation: str,
    request_id: str,
    as_json: bool,
    model: str,
) -> None:
    """Create MODEL without labels. It serves once it has two: see `topwork add-class`."""
    if backbone and like:
        raise InvalidInput("give --backbone or --like, not both", field="like")
    if space and (backbone or like):
        raise InvalidInput("--space needs no --backbone and no --like", field="space")
    if bool(space) != (width is not None):
        raise InvalidInput("give --space and --width together", field="width")
    with connected(server) as client:
        found = client.create_model(
            model,
            backbone=backbone,
            like=like,
            space=space,
            width=width or 0,
            seed=seed,
            head=head,
            normalisation=normalisation,
            request_id=request_id,
        )
    _print_model(found, as_json=as_json)


@click.command()
@server_option
@click.option(
    "--revision",
    default=0,
    type=click.IntRange(min=0),
    help="Revision to copy; 0: the serving one.",
)
@request_id_option
@json_output
@click.argument("source")
@click.argument("model")
def copy(
    server: ServerOptions, revision: int, request_id: str, as_json: bool, source: str, model: str
) -> None:
    """Copy a revision of SOURCE with its exemplars into the new MODEL, which serves."""
    with connected(server) as client:
        found = client.copy_model(source, model, revision=revision, request_id=request_id)
    _print_model(found, as_json=as_json)


@click.command()
@server_option
@click.option("--force", is_flag=True, help="Delete it even if it answers requests.")
@click.argument("model")
def delete(server: ServerOptions, force: bool, model: str) -> None:
    """Delete MODEL. Until `topwork gc` deletes its files, `topwork undelete` restores it."""
    with connected(server) as client:
        client.delete_model(model, force=force)
    print(f"{model} is deleted; topwork undelete {model} restores it")


@click.command()
@server_option
@json_output
@click.argument("model")
def undelete(server: ServerOptions, as_json: bool, model: str) -> None:
    """Restore the deleted MODEL."""
    with connected(server) as client:
        found = client.undelete_model(model)
    _print_model(found, as_json=as_json)


@click.command()
@server_option
@json_output
def backbones(server: ServerOptions, as_json: bool) -> None:
    """List the backbones that `topwork create` can use."""
    with connected(server) as client:
        found = list(client.backbones())
    if as_json:
        for stored in found:
            print(json.dumps(_backbone_json(stored)))
        return
    headers = ("backbone", "input", "width", "precision", "bytes", "licence", "digest")
    rows = [
        (
            stored.backbone.name,
            "embedding"
            if stored.backbone.HasField("embedding")
            else f"{stored.backbone.preprocess.crop} x {stored.backbone.preprocess.crop}",
            str(stored.backbone.width),
            stored.backbone.precision,
            f"{stored.size_bytes:,}",
            stored.licence,
            stored.backbone.digest,
        )
        for stored in found
    ]
    tables.console().print(tables.table(headers, rows, copied=["backbone", "digest"]))


def _backbone_json(stored: lifecycle_pb.StoredBackbone) -> dict[str, object]:
    return {
        "digest": stored.backbone.digest,
        "name": stored.backbone.name,
        "width": stored.backbone.width,
        "precision": stored.backbone.precision,
        "input": stored.backbone.preprocess.crop,
        "licence": stored.licence,
        "source": stored.source,
        "bytes": stored.size_bytes,
    }


def _print_model(found: model_pb.Model, *, as_json: bool) -> None:
    name, draft = found.name.removeprefix("models/"), found.draft
    if as_json:
        state = {
            "model": name,
            "serving": found.serving_revision.revision,
            "labels": list(draft.labels or found.serving_revision.labels),
            "missing_labels": draft.missing_labels,
        }
        print(json.dumps(state))
    elif found.HasField("draft"):
        print(f"{name} has {len(draft.labels)} labels and serves after {draft.missing_labels} more")
    else:
        print(f"{name}: revision {found.serving_revision.revision} serves")
