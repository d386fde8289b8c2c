"""``topwork export``: a revision as one ONNX file, or as a page for browsers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from topwork.bundle.opening import open_repository
from topwork.bundle.signing.signatures import SigningFiles
from topwork.cli.options import json_output, require_signed_option, trusted_keys_option
from topwork.errors import InvalidInput
from topwork.export import browser
from topwork.export.model import Precision
from topwork.export.model import export as export_model
from topwork.printable import file_name
from topwork.repository_option import repository_option
from topwork.storage import files
from topwork.storage.location import Location


@click.command()
@repository_option("Repository of the model.", exists=True, required=True)
@click.option(
    "--revision",
    default=0,
    type=click.IntRange(min=0),
    help="Revision to export; 0: the serving one.",
)
@click.option(
    "--precision",
    default="stored",
    type=click.Choice(get_args(Precision)),
    help="fp32: the backbone from which an int8 backbone was quantised.",
)
@click.option(
    "--browser",
    "page",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write a page that classifies photos in a browser, to this directory.",
)
@click.option(
    "--onnxruntime-web",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help=f"Folder of the npm package onnxruntime-web@{browser.VERSION}, for --browser.",
)
@trusted_keys_option()
@require_signed_option
@json_output
@click.argument("model")
@click.argument("output", required=False, type=click.Path(dir_okay=False, path_type=Path))
def export(
    repository: Location,
    revision: int,
    precision: Precision,
    page: Path | None,
    onnxruntime_web: Path | None,
    trusted_keys: Path | None,
    require_signed: bool,
    as_json: bool,
    model: str,
    output: Path | None,
) -> None:
    """Export MODEL of a repository as one ONNX file, OUTPUT, for other runtimes.

    uint8 pixels go in, and probabilities come out. Labels, the threshold of unknown images and the
    preprocess spec are in the file's metadata. OUTPUT may be left out with --browser.
    """
    if output is None and page is None:
        raise InvalidInput("OUTPUT is missing; name a file, or use --browser", field="output")
    runtime = browser.read_runtime(onnxruntime_web) if page is not None else {}
    keys = SigningFiles(trusted_keys=trusted_keys, require_signed=require_signed)
    opened = open_repository(repository, keys.read(publishes=False))
    portable = export_model(opened, model, revision=revision, precision=precision)
    try:
        if output is not None:
            files.write_file(output, portable.model)
        if page is not None:
            browser.write_page(page, portable, runtime)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    _show(portable.facts, len(portable.model), output, page, as_json=as_json)


def _show(
    facts: Mapping[str, Any], size: int, output: Path | None, page: Path | None, *, as_json: bool
) -> None:
    if as_json:
        written = {"output": output and str(output), "browser": page and str(page), "bytes": size}
        print(json.dumps({**facts, **written}))
        return
    about = (
        f"{facts['model']} revision {facts['revision']}, {len(facts['labels'])} labels, "
        f"{facts['backbone']} {facts['precision']}, {size / 1e6:.1f} MB"
    )
    for path in (output, page):
        if path is not None:
            print(f"{file_name(path)}: {about}")
