"""``topwork examples``: list, show, move and remove training images of a live model."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import click
from rich.text import Text

from topwork import Client, tables
from topwork.cli import show
from topwork.cli.follow import follow_and_print
from topwork.cli.options import ServerOptions, change_options, connected, json_output, server_option
from topwork.cli.previews import kind_to_show, shown
from topwork.command_group import example
from topwork.errors import InvalidInput, NotFound
from topwork.terminal import Console
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import example_pb2 as example_pb

SHORT = 12
"""Hexadecimal digits of a digest in a table; the commands accept them if they are unique."""

_PREFIX = re.compile("[0-9a-f]{4,64}")

model_argument = click.argument("model")
digests_argument = click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
previews_option = click.option(
    "--previews",
    is_flag=True,
    help="Show texts, or thumbnails if the terminal has colours; with --json as base64.",
)


@click.group()
def examples() -> None:
    """List, show, move and remove training images of a live model."""


@examples.command("list", epilog=example("topwork examples list flowers --filter 'suspect = true'"))
@server_option
@click.option(
    "--filter",
    "query",
    default="",
    show_default=False,
    help='Filter, such as: label = "tulips" AND display_name = "IMG_*". Fields: label, suspect, '
    "operation, display_name, digest.",
)
@click.option("--limit", default=50, type=click.IntRange(min=1), help="Most examples to print.")
@previews_option
@json_output
@model_argument
def list_examples(
    server: ServerOptions, query: str, limit: int, previews: bool, as_json: bool, model: str
) -> None:
    """List the training images of MODEL, those with the most doubtful label first."""
    console = tables.console()
    with connected(server) as client:
        kind = kind_to_show(client, model, console) if previews and not as_json else ""
        rows = client.list_examples(model, query, previews=previews and (as_json or bool(kind)))
        found = [*islice(rows, limit)]
    if as_json:
        for row in found:
            print(json.dumps(_json(row, previews=previews)))
    elif kind:
        for row in found:
            _print_with_preview(console, row, kind)
    else:
        headers = ("digest", "label", "probability", "looks like", "", "suspect", "name", "added")
        console.print(tables.table(headers, [_cells(row) for row in found], copied=["digest"]))
    if len(found) == limit and not as_json:
        Console(stderr=True).print(f"the first {limit}; --limit prints more", highlight=False)


@examples.command("show", epilog=example("topwork examples show flowers 3f9a12c4d5e6"))
@server_option
@click.option("--label", default="", show_default=False, help="Label, if the image has several.")
@previews_option
@json_output
@model_argument
@click.argument("digest")
def show_example(
    server: ServerOptions, label: str, previews: bool, as_json: bool, model: str, digest: str
) -> None:
    """Show all about the training image DIGEST of MODEL."""
    console = tables.console()
    with connected(server) as client:
        (whole,) = whole_digests(client, model, [digest])
        found = client.get_example(model, whole, label=label)
        kind = kind_to_show(client, model, console) if previews and not as_json else ""
    if as_json:
        print(json.dumps(_json(found, previews=previews)))
        return
    if kind:
        console.print(shown(kind, found.preview))
    rows = [(name, "" if value is None else str(value)) for name, value in _json(found).items()]
    console.print(tables.table(("", ""), rows))


@examples.command("move", epilog=example("topwork examples move flowers 3f9a12c4d5e6 --to tulips"))
@server_option
@click.option("--to", "label", required=True, help="Label that the images get, also a new one.")
@change_options
@json_output
@model_argument
@digests_argument
def move_examples(
    server: ServerOptions,
    label: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
    model: str,
    digests: tuple[str, ...],
) -> None:
    """Move training images of MODEL to another label.

    DIGEST is an image digest, or its unique beginning. The new head is the one that `topwork-train
    fit` gives with the photos under that label. Exit status 1 if they were not moved.
    """
    start = time.perf_counter()
    with connected(server) as client:
        whole = whole_digests(client, model, digests)
        accepted = client.move_examples(model, whole, label, request_id=request_id, options=options)
        follow_and_print(client, accepted, start, as_json=as_json)


@examples.command("remove", epilog=example("topwork examples remove flowers 3f9a12c4d5e6"))
@server_option
@click.option(
    "--label", default="", show_default=False, help="Remove them from this label only, not all."
)
@change_options
@json_output
@model_argument
@digests_argument
def remove_examples(
    server: ServerOptions,
    label: str,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
    model: str,
    digests: tuple[str, ...],
) -> None:
    """Remove training images from MODEL.

    DIGEST is an image digest, or its unique beginning. The new head is the one that `topwork-train
    fit` gives without the photos. Earlier revisions retain their data until `topwork gc` deletes
    them; `topwork gc --erase` does so at once. Exit status 1 if they were not removed.
    """
    start = time.perf_counter()
    with connected(server) as client:
        whole = whole_digests(client, model, digests)
        accepted = client.remove_examples(
            model, whole, label=label, request_id=request_id, options=options
        )
        follow_and_print(client, accepted, start, as_json=as_json)


def whole_digests(client: Client, model: str, given: Sequence[str]) -> list[str]:
    """Return the digests of the examples that begin with ``given``.

    Raises InvalidInput for an ambiguous one, NotFound if there is none, and CallFailed.
    """
    whole = []
    for text in given:
        prefix = text.lower()
        if not _PREFIX.fullmatch(prefix):
            raise InvalidInput(
                f"{text!r} is not an image digest: 64 hexadecimal digits, or the first 4 or more",
                field="digest",
            )
        if len(prefix) == 64:
            whole.append(prefix)
            continue
        listed = client.list_examples(model, f'digest = "{prefix}*"')
        found = sorted({row.digest for row in islice(listed, 10)})
        if not found:
            raise NotFound(
                f"model {model!r} has no example {prefix}...", kind="example", resource=prefix
            )
        if len(found) > 1:
            several = ", ".join(found)
            raise InvalidInput(f"{prefix} begins several digests: {several}", field="digest")
        whole += found
    return whole


def _cells(row: example_pb.Example) -> tuple[str, ...]:
    known = row.HasField("label_probability")
    return (
        row.digest[:SHORT],
        row.label,
        f"{row.label_probability:.3f}" if known else "-",
        row.suggested_label or "-",
        f"{row.suggested_probability:.3f}" if known else "-",
        "suspect" if row.suspect else "",
        row.display_name,
        show.moment(_time(row)) if row.HasField("create_time") else "-",
    )


def _print_with_preview(console: Console, row: example_pb.Example, kind: str) -> None:
    digest, label, probability, other, other_probability, suspect, name, added = _cells(row)
    lines = (
        f"{digest} {name}",
        f"{label} {probability} {suspect}".rstrip(),
        f"looks like {other} {other_probability}",
        f"added {added} {row.operation}".rstrip(),
    )
    console.print(shown(kind, row.preview))
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(Text())


def _json(row: example_pb.Example, *, previews: bool = False) -> dict[str, Any]:
    known = row.HasField("label_probability")
    values: dict[str, Any] = {
        "digest": row.digest,
        "name": row.display_name,
        "label": row.label,
        "other_labels": list(row.other_labels),
        "label_probability": row.label_probability if known else None,
        "suggested_label": row.suggested_label or None,
        "suggested_probability": row.suggested_probability if known else None,
        "suspect": row.suspect,
        "suspicion": row.suspicion,
        "fold": row.fold if row.HasField("fold") else None,
        "operation": row.operation,
        "added": _time(row) if row.HasField("create_time") else None,
    }
    if row.content_digest or row.preview:
        values |= {"content_digest": row.content_digest, "stored": row.stored}
    if previews:
        values["preview"] = base64.b64encode(row.preview).decode()
    return values


def _time(row: example_pb.Example) -> str:
    return row.create_time.ToDatetime().isoformat(timespec="seconds") + "Z"
