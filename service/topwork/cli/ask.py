"""``topwork classify``, ``models`` and ``describe``: what a server knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from topwork.cli import show
from topwork.cli.options import (
    address,
    connected,
    json_output,
    model_option,
    photo_files,
    read_photo,
)
from topwork.errors import ImageError, InvalidInput
from topwork.rpc.calls import MESSAGE_BYTES
from topwork.v1 import classifier_service_pb2 as classify_pb

IMAGES_A_REQUEST = 16


@click.command()
@address
@model_option
@click.option("--revision", default=0, type=click.IntRange(min=0), help="0: the one that serves.")
@click.option("--top-k", default=5, type=click.IntRange(min=1), help="Predictions an image.")
@json_output
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
def classify(
    address: str,
    model: str,
    revision: int,
    top_k: int,
    as_json: bool,
    images: tuple[Path, ...],
) -> None:
    """Say what is on IMAGES (files, or directories of them).

    With --json, one object a line: image, revision, predictions, unknown_probability, is_unknown,
    error. Exit status 1 if an image could not be classified.
    """
    files = photo_files(images)
    if not files:
        raise InvalidInput(f"there is no file below {', '.join(map(str, images))}", field="images")
    failed = False
    console = Console()
    with connected(address) as client:
        for batch in _batches(files):
            contents = [content for _, content in batch if isinstance(content, bytes)]
            answer = (
                client.classify(model, contents, revision=revision, top_k=top_k)
                if contents
                else classify_pb.ClassifyResponse()
            )
            results = iter(answer.results)
            for path, content in batch:
                row = (
                    _row(path, answer.revision, next(results))
                    if isinstance(content, bytes)
                    else _failure(path, None, content)
                )
                failed |= row["error"] is not None
                if as_json:
                    print(json.dumps(row), flush=True)
                else:
                    console.print(_line(row), highlight=False, soft_wrap=True, markup=False)
    sys.exit(1 if failed else 0)


@click.command()
@address
@json_output
def models(address: str, as_json: bool) -> None:
    """List the models of a server."""
    table = Table("model", "revision", "labels", "images", "accuracy (95 % interval)", "backbone")
    with connected(address) as client:
        for model in client.models():
            revision = model.serving_revision
            if as_json:
                print(json.dumps(show.model_json(model)))
            else:
                table.add_row(
                    model.name.removeprefix("models/"),
                    str(revision.revision),
                    str(len(revision.labels)),
                    str(revision.metrics.images),
                    show.accuracy(revision.metrics),
                    revision.backbone.name,
                )
    if not as_json:
        Console().print(table)


@click.command()
@address
@json_output
@click.argument("model")
def describe(address: str, as_json: bool, model: str) -> None:
    """Show a model: labels with their precision and recall, revisions, backbone, limits."""
    with connected(address) as client:
        found = client.model(model)
    if as_json:
        print(json.dumps(show.model_json(found)))
    else:
        show.model(Console(), found)


def _batches(files: Sequence[Path]) -> Iterator[list[tuple[Path, bytes | str]]]:
    """Yield (path, content or why it cannot be read) pairs, a request's worth at a time."""
    batch: list[tuple[Path, bytes | str]] = []
    length = 0
    for path in files:
        try:
            content: bytes | str = read_photo(path)
        except ImageError as error:
            content = str(error)
        if batch and (len(batch) == IMAGES_A_REQUEST or length + len(content) > MESSAGE_BYTES):
            yield batch
            batch, length = [], 0
        batch.append((path, content))
        length += len(content)
    if batch:
        yield batch


def _row(path: Path, revision: int, result: classify_pb.ImageResult) -> dict[str, Any]:
    if result.HasField("error"):
        return _failure(path, revision, result.error.message)
    return {
        "image": str(path),
        "revision": revision,
        "predictions": [
            {"label": one.label, "probability": one.probability}
            for one in result.classification.predictions
        ],
        "unknown_probability": result.classification.unknown_probability
        if result.classification.HasField("unknown_probability")
        else None,
        "is_unknown": result.classification.is_unknown,
        "error": None,
    }


def _failure(path: Path, revision: int | None, message: str) -> dict[str, Any]:
    return {
        "image": str(path),
        "revision": revision,
        "predictions": [],
        "unknown_probability": None,
        "is_unknown": False,
        "error": message,
    }


def _line(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"{row['image']}: error: {row['error']}"
    said = "  ".join(f"{one['label']} {one['probability']:.3f}" for one in row["predictions"])
    doubt = f"  (unknown {row['unknown_probability']:.3f})" if row["is_unknown"] else ""
    return f"{row['image']}: {said}{doubt}"
