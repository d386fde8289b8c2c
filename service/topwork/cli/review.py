"""``topwork review``: the review queue of a live model."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration

from topwork import Client, tables
from topwork.cli import show
from topwork.cli.follow import follow_and_print
from topwork.cli.options import ServerOptions, change_options, connected, json_output, server_option
from topwork.cli.previews import kind_to_show, shown
from topwork.command_group import example
from topwork.errors import InvalidInput, NotFound
from topwork.terminal import Console
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import review_service_pb2 as review_pb

SHORT = 12
"""Hexadecimal digits of a digest in a table; the commands accept them if they are unique."""

_PREFIX = re.compile("[0-9a-f]{4,64}")
_TIME = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_REASONS = {
    review_pb.CANDIDATE_REASON_UNKNOWN: "unknown",
    review_pb.CANDIDATE_REASON_FAR: "far",
    review_pb.CANDIDATE_REASON_UNCERTAIN: "uncertain",
    review_pb.CANDIDATE_REASON_RANDOM: "random",
    review_pb.CANDIDATE_REASON_CORRECTED: "corrected",
}

model_argument = click.argument("model")
digests_argument = click.argument("digests", nargs=-1, metavar="[DIGEST]...")
group_option = click.option(
    "--group", default="", show_default=False, help="All candidates of this group."
)
previews_option = click.option(
    "--previews",
    is_flag=True,
    help="Show texts, or thumbnails if the terminal has colours; with --json as base64.",
)


class _Age(click.ParamType[int]):
    """A time such as 12h or 30d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        match = _TIME.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a time such as 12h or 30d", param, ctx)
        return int(match[1]) * _SECONDS[match[2]]


@click.group()
def review() -> None:
    """Keep doubtful images of a live model, and label them."""


@review.command("policy", epilog=example("topwork review policy flowers --on --per-day 200"))
@server_option
@click.option("--on/--off", "enabled", default=None, help="Whether images are kept.")
@click.option("--per-day", type=click.IntRange(min=1), help="Most images kept a day (UTC).")
@click.option("--max-bytes", type=click.IntRange(min=1), help="Most bytes of all kept images.")
@click.option("--ttl", type=_Age(), help="Age at which an image is deleted, such as 30d.")
@click.option("--unknown/--no-unknown", default=None, help="Whether unknown images are kept.")
@click.option(
    "--far/--no-far",
    default=None,
    help="Whether images are kept that are far from the exemplars, but not unknown.",
)
@click.option(
    "--max-margin",
    type=click.FloatRange(0, 1),
    help="Keep images whose two highest probabilities differ by less; 0: none.",
)
@click.option(
    "--random-share",
    type=click.FloatRange(0, 1),
    help="Share of the images per day that is drawn at random.",
)
@json_output
@model_argument
def policy(
    server: ServerOptions,
    model: str,
    as_json: bool,
    enabled: bool | None,
    per_day: int | None,
    max_bytes: int | None,
    ttl: int | None,
    unknown: bool | None,
    far: bool | None,
    max_margin: float | None,
    random_share: float | None,
) -> None:
    """Show what the review queue of MODEL keeps, or change it. It is off by default."""
    wanted = review_pb.ReviewPolicy(
        enabled=enabled,
        images_per_day=per_day,
        max_bytes=max_bytes,
        ttl=None if ttl is None else Duration(seconds=ttl),
        unknown=unknown,
        far=far,
        max_margin=max_margin,
        random_share=random_share,
    )
    with connected(server) as client:
        found = (
            client.update_review_policy(model, wanted)
            if wanted.ListFields()
            else client.review_policy(model)
        )
    values = {
        "enabled": found.enabled,
        "images_per_day": found.images_per_day,
        "max_bytes": found.max_bytes,
        "ttl_seconds": found.ttl.seconds,
        "unknown": found.unknown,
        "far": found.far,
        "max_margin": found.max_margin,
        "random_share": found.random_share,
        "candidates": found.candidates,
        "bytes": found.bytes,
        "kept_today": found.kept_today,
    }
    if as_json:
        print(json.dumps(values))
    else:
        rows = [(name, str(value)) for name, value in values.items()]
        tables.console().print(tables.table(("", ""), rows))


@review.command("list", epilog=example("topwork review list flowers --filter 'reason = unknown'"))
@server_option
@click.option(
    "--filter",
    "query",
    default="",
    show_default=False,
    help="Filter, such as: reason = unknown AND claimed = false. Fields: reason, group, label, "
    "suggested_label, claimed.",
)
@click.option("--limit", default=50, type=click.IntRange(min=1), help="Most candidates to print.")
@previews_option
@json_output
@model_argument
def list_candidates(
    server: ServerOptions, query: str, limit: int, previews: bool, as_json: bool, model: str
) -> None:
    """List the candidates of MODEL, those whose label is most useful first."""
    console = tables.console()
    with connected(server) as client:
        kind = kind_to_show(client, model, console) if previews and not as_json else ""
        rows = client.list_candidates(model, query, previews=previews and (as_json or bool(kind)))
        found = [*islice(rows, limit)]
    if as_json:
        for row in found:
            print(json.dumps(_json(row, previews=previews)))
    elif kind:
        _print_previews(console, found, kind)
    else:
        headers = ("digest", "reason", "looks like", "", "unknown", "suggested", "group", "kept")
        console.print(tables.table(headers, [_cells(row) for row in found], copied=["digest"]))
    if len(found) == limit and not as_json:
        Console(stderr=True).print(f"the first {limit}; --limit prints more", highlight=False)


@review.command("groups", epilog=example("topwork review groups flowers --previews"))
@server_option
@previews_option
@json_output
@model_argument
def groups(server: ServerOptions, previews: bool, as_json: bool, model: str) -> None:
    """List the groups of candidates of MODEL that look alike and like no label that it has."""
    console = tables.console()
    with connected(server) as client:
        found = client.candidate_groups(model)
        kind = kind_to_show(client, model, console) if previews and not as_json else ""
    if as_json:
        for group in found:
            print(json.dumps(_group_json(group, previews=previews)))
        return
    if not found:
        console.print("no candidates look alike", highlight=False)
    for group in found:
        text = (
            f"{group.id}: {group.size} images that look alike, {group.unknown} of them unknown; "
            f"nearest label {group.nearest_label}"
        )
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        if kind:
            _print_previews(console, group.examples[:3], kind)


@review.command("show", epilog=example("topwork review show flowers 3f9a12c4d5e6 --save photo.jpg"))
@server_option
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="File to write the image to."
)
@previews_option
@json_output
@model_argument
@click.argument("digest")
def show_candidate(
    server: ServerOptions,
    save: Path | None,
    previews: bool,
    as_json: bool,
    model: str,
    digest: str,
) -> None:
    """Show all about the candidate DIGEST of MODEL."""
    console = tables.console()
    with connected(server) as client:
        (whole,) = whole_digests(client, model, [digest])
        found = client.get_candidate(model, whole)
        kind = kind_to_show(client, model, console) if previews and not as_json else ""
    if save is not None:
        save.write_bytes(found.image)
    if as_json:
        print(json.dumps(_json(found, previews=previews)))
        return
    if kind:
        console.print(shown(kind, found.preview))
    rows = [(name, "" if value is None else str(value)) for name, value in _json(found).items()]
    console.print(tables.table(("", ""), rows))


@review.command(
    "label", epilog=example("topwork review label flowers --group 3f9a12c4d5e6 --as tulips")
)
@server_option
@click.option(
    "--as", "label", default="", show_default=False, help="Label of the images, also a new one."
)
@group_option
@click.option(
    "--suggested",
    is_flag=True,
    help="All corrected candidates, each with the label that its caller suggested.",
)
@change_options
@json_output
@model_argument
@digests_argument
def label_candidates(
    server: ServerOptions,
    label: str,
    group: str,
    suggested: bool,
    request_id: str,
    options: change_pb.ChangeOptions,
    as_json: bool,
    model: str,
    digests: tuple[str, ...],
) -> None:
    """Teach MODEL the labels of candidates.

    DIGEST is an image digest, or its unique beginning. The images become examples, by one
    operation. Exit status 1 if it failed; its images then return to the queue.
    """
    if suggested == bool(label):
        raise click.UsageError("give either --as or --suggested")
    start = time.perf_counter()
    with connected(server) as client:
        if suggested:
            rows = client.list_candidates(model, "reason = corrected AND claimed = false")
            labels: dict[str, str | None] = {row.digest: row.suggested_label for row in rows}
        else:
            labels = dict.fromkeys(_chosen(client, model, digests, group), label)
        if not labels:
            raise click.UsageError("there is no such candidate")
        accepted = client.label_candidates(model, labels, request_id=request_id, options=options)
        for operation in accepted:
            follow_and_print(client, operation.raw, start, as_json=as_json)


@review.command("discard", epilog=example("topwork review discard flowers 3f9a12c4d5e6"))
@server_option
@group_option
@click.option("--all", "everything", is_flag=True, help="All candidates of the model.")
@model_argument
@digests_argument
def discard(
    server: ServerOptions, group: str, everything: bool, model: str, digests: tuple[str, ...]
) -> None:
    """Delete candidates of MODEL. The same images are not kept again."""
    with connected(server) as client:
        if everything:
            rows = client.list_candidates(model, "claimed = false")
            chosen = [row.digest for row in rows]
        else:
            chosen = _chosen(client, model, digests, group)
        if chosen:
            client.label_candidates(model, dict.fromkeys(chosen))
    tables.console().print(f"discarded {len(chosen)} candidates", highlight=False)


@review.command("correct", epilog=example("topwork review correct flowers ANSWER --as tulips"))
@server_option
@click.option("--as", "label", required=True, help="Right label, also a new one.")
@model_argument
@click.argument("answer")
def correct(server: ServerOptions, label: str, model: str, answer: str) -> None:
    """Say that the answer with the id ANSWER was wrong; its image becomes a candidate of MODEL."""
    with connected(server) as client:
        found = client.correct_answer(model, answer, label)
    tables.console().print(found.digest, highlight=False)


def whole_digests(client: Client, model: str, given: Sequence[str]) -> list[str]:
    """Return the digests of the candidates that begin with ``given``.

    Raises InvalidInput for an ambiguous one, NotFound if there is none, and CallFailed.
    """
    known = [row.digest for row in client.list_candidates(model)]
    whole = []
    for text in given:
        prefix = text.lower()
        if not _PREFIX.fullmatch(prefix):
            raise InvalidInput(
                f"{text!r} is not an image digest: 64 hexadecimal digits, or the first 4 or more",
                field="digest",
            )
        found = [digest for digest in known if digest.startswith(prefix)]
        if not found:
            raise NotFound(
                f"model {model!r} has no candidate {prefix}...", kind="candidate", resource=prefix
            )
        if len(found) > 1:
            raise InvalidInput(
                f"{prefix} begins several digests: {', '.join(found)}", field="digest"
            )
        whole += found
    return whole


def _chosen(client: Client, model: str, digests: Sequence[str], group: str) -> list[str]:
    """Return the digests of the candidates that a command names."""
    if bool(digests) == bool(group):
        raise click.UsageError("give either digests or --group")
    if not group:
        return whole_digests(client, model, digests)
    rows = [row.digest for row in client.list_candidates(model, f'group = "{group}"')]
    if not rows:
        raise NotFound(
            f"model {model!r} has no group {group!r} now: see topwork review groups",
            kind="group",
            resource=group,
        )
    return rows


def _cells(row: review_pb.Candidate) -> tuple[str, ...]:
    first = row.classification.predictions[0]
    known = row.classification.HasField("unknown_probability")
    state = f"learning {row.label}" if row.operation else _REASONS.get(row.reason, "")
    return (
        row.digest[:SHORT],
        state,
        first.label,
        f"{first.probability:.3f}",
        f"{row.classification.unknown_probability:.3f}" if known else "-",
        row.suggested_label,
        row.group,
        show.moment(row.create_time.ToDatetime().isoformat(timespec="seconds") + "Z"),
    )


def _print_previews(console: Console, rows: Iterable[review_pb.Candidate], kind: str) -> None:
    for row in rows:
        console.print(shown(kind, row.preview))
        text = "  ".join(cell for cell in _cells(row) if cell)
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _json(row: review_pb.Candidate, *, previews: bool = False) -> dict[str, Any]:
    answer = row.classification
    known = answer.HasField("unknown_probability")
    values: dict[str, Any] = {
        "digest": row.digest,
        "reason": _REASONS.get(row.reason, ""),
        "predictions": {each.label: each.probability for each in answer.predictions},
        "unknown_probability": answer.unknown_probability if known else None,
        "is_unknown": answer.is_unknown if known else None,
        "usefulness": row.usefulness,
        "answered_label": row.answered_label,
        "revision": row.revision,
        "suggested_label": row.suggested_label or None,
        "group": row.group or None,
        "operation": row.operation or None,
        "label": row.label or None,
        "created": row.create_time.ToDatetime().isoformat(timespec="seconds") + "Z",
        "expires": row.expire_time.ToDatetime().isoformat(timespec="seconds") + "Z",
    }
    if previews:
        values["preview"] = base64.b64encode(row.preview).decode()
    return values


def _group_json(group: review_pb.CandidateGroup, *, previews: bool) -> dict[str, Any]:
    return {
        "id": group.id,
        "size": group.size,
        "unknown": group.unknown,
        "nearest_label": group.nearest_label,
        "similarity": group.similarity,
        "known_similarity": group.known_similarity,
        "examples": [_json(row, previews=previews) for row in group.examples],
    }
