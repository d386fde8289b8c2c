"""``topwork explain``: explain the classification of one input, on a server or in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

import topwork
from topwork import Audio, Embedding, ExplainResult, Text, tables
from topwork.bundle.signing.signatures import SigningFiles
from topwork.cli.input_files import list_inputs
from topwork.cli.options import (
    ServerOptions,
    check_page,
    connected,
    json_output,
    require_signed_option,
    server_option,
    trusted_keys_option,
    write_page,
)
from topwork.client.inputs import Content
from topwork.errors import InvalidInput
from topwork.printable import file_name, printable
from topwork.report.explanation import (
    ExplainedInput,
    HeatMap,
    near_example,
    render_explanation,
    shown_audio,
    shown_image,
    shown_text,
)
from topwork.repository_option import repository_option
from topwork.storage.location import Location
from topwork.terminal import LocalPath

_STRENGTH = " .:-=+*#@"
"""Characters of evidence for a label, the weakest first."""


@click.command()
@server_option
@repository_option("Repository of the model, to explain without a server.", exists=True)
@trusted_keys_option()
@require_signed_option
@click.option(
    "--revision",
    default=0,
    type=click.IntRange(min=0),
    help="Revision that classifies; 0: the serving one.",
)
@click.option(
    "--label", default="", show_default=False, help="Label to explain. Default: the predicted one."
)
@click.option(
    "--neighbours",
    type=click.IntRange(min=0, max=50),
    help="Number of nearest training images. Default: 5, or 0 without the role train.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page.")
@json_output
@click.argument("model")
@click.option("--text", show_default=False, help="A text to explain, in place of IMAGE.")
@click.argument(
    "image", required=False, type=LocalPath(exists=True, dir_okay=False, path_type=Path)
)
def explain(
    server: ServerOptions,
    repository: Location | None,
    trusted_keys: Path | None,
    require_signed: bool,
    revision: int,
    label: str,
    neighbours: int | None,
    out: Path | None,
    as_json: bool,
    model: str,
    text: str | None,
    image: Path | None,
) -> None:
    """Explain how MODEL classifies IMAGE: heat map and nearest training images.

    IMAGE is a photo, a text .txt, audio (.wav, .flac, .ogg, .mp3), or a .npy with one embedding;
    --text gives a text itself. Only photos have a heat map. --out writes a page, with the map over
    the photo. --json prints an object with model, revision, image, label, predictions, map,
    map_unavailable and neighbours.
    """
    check_page(out, field="out")
    name, content = _read(image, text, page=out is not None)
    if repository is None:
        with connected(server) as client:
            result = client.explain(
                model, content, label=label, neighbours=neighbours, revision=revision
            )
    else:
        keys = SigningFiles(trusted_keys=trusted_keys, require_signed=require_signed)
        signing = keys.read(publishes=False)
        opened = topwork.open(repository, model, revision=revision, threads=1, signing=signing)
        count = {} if neighbours is None else {"neighbours": neighbours}
        result = opened.explain(content, label=label, **count)
    if out is not None and not isinstance(content, Embedding):
        shown = file_name(image.name) if image is not None else ""
        page = render_explanation(_explained(model, shown, content, result))
        write_page(out, page, field="out")
    if as_json:
        print(json.dumps(_as_json(model, name, result)))
    else:
        _show(name, result)


def _read(path: Path | None, text: str | None, *, page: bool) -> tuple[str, Content]:
    """Return name and content of the one input. Raises ImageError, InvalidInput, UsageError."""
    if (path is None) == (text is None):
        raise click.UsageError("give either IMAGE or --text")
    paths, texts = ([path] if path is not None else []), ([text] if text is not None else [])
    inputs = list_inputs(paths, field="image", texts=texts)
    ((name, read), *others) = inputs.items
    if others:
        found = f"{len(inputs.items)} {inputs.kind.noun}s"
        raise InvalidInput(f"{', '.join(map(file_name, paths))} has {found}", field="image")
    content = read()
    if page and isinstance(content, Embedding):
        raise InvalidInput("--out shows a photo, text or audio, not an embedding", field="out")
    return name, content


def _explained(
    model: str, name: str, content: bytes | Text | Audio, result: ExplainResult
) -> ExplainedInput:
    found, classified = result.map, result.result
    if isinstance(content, Text):
        kind, shown = "text", shown_text(content.data)
    elif isinstance(content, Audio):
        kind, shown = "audio", shown_audio(content.data)
    else:
        kind, shown = "image", shown_image(content)
    return ExplainedInput(
        model=model,
        revision=result.revision,
        name=name,
        shown=shown,
        label=result.label,
        predictions=classified.predictions,
        unknown=classified.unknown_probability if classified.is_unknown else None,
        map=None
        if found is None
        else HeatMap(
            values=np.array(found.values),
            bias=found.bias,
            rest=found.rest,
            logit=found.logit,
            region=found.region,
        ),
        map_unavailable=result.map_unavailable,
        neighbours=[
            near_example(kind, near.label, near.name, near.similarity, near.preview)
            for near in result.neighbours
        ],
    )


def _show(name: str, result: ExplainResult) -> None:
    """Print the probabilities, the map in characters, and the nearest examples."""
    predicted = "  ".join(
        f"{each.label} {each.probability:.3f}" for each in result.result.predictions
    )
    click.echo(printable(f"{name}  {predicted}"))
    if result.map is None:
        text = f"no map of the evidence for {result.label}: {result.map_unavailable}"
        click.echo(printable(text))
    else:
        found = result.map
        total = sum(map(sum, found.values))
        rest = f", not explained {found.rest:.2f}" if abs(found.rest) >= 0.005 else ""
        click.echo(
            printable(
                f"evidence for {result.label}: logit {found.logit:.2f} = map {total:.2f} + "
                f"the same for all images {found.bias:.2f}{rest}"
            )
        )
        most = max(1e-12, *map(max, found.values))
        for row in found.values:
            steps = (round(max(value, 0) / most * (len(_STRENGTH) - 1)) for value in row)
            line = (_STRENGTH[step] for step in steps)
            click.echo("  |" + "".join(2 * character for character in line) + "|")
    if result.neighbours:
        rows = [
            (printable(near.name or near.digest[:12]), near.label, f"{near.similarity:.3f}")
            for near in result.neighbours
        ]
        tables.console().print(tables.table(("nearest example", "label", "similarity"), rows))


def _as_json(model: str, name: str, result: ExplainResult) -> dict[str, Any]:
    found = result.map
    return {
        "model": model,
        "revision": result.revision,
        "image": name,
        "label": result.label,
        "predictions": [each._asdict() for each in result.result.predictions],
        "map": None
        if found is None
        else {
            "values": found.values,
            "bias": found.bias,
            "rest": found.rest,
            "logit": found.logit,
            "region": found.region,
        },
        "map_unavailable": result.map_unavailable,
        "neighbours": [
            {
                "label": near.label,
                "similarity": near.similarity,
                "name": near.name,
                "digest": near.digest,
            }
            for near in result.neighbours
        ],
    }
