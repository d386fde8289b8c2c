"""``topwork classify``: stream inputs to a server and print a line for each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from topwork.cli.image_rows import classify_inputs, given_inputs, image_arguments
from topwork.cli.options import ServerOptions, connected, model_option, server_option
from topwork.cli.parquet_table import out_option, write_table


@click.command()
@server_option
@model_option
@out_option
@image_arguments
def classify(
    server: ServerOptions,
    model: str,
    out: Path | str | None,
    revision: int,
    top_k: int,
    as_json: bool,
    images: tuple[Path | str, ...],
    texts: tuple[str, ...],
) -> None:
    """Classify IMAGES (photos, texts .txt, embeddings .npy or .npz, or folders).

    IMAGES may be patterns, such as 'photos/**/*.jpg', or lie in a bucket, 's3://bucket/*.jpg'. All
    must be of the kind that the model takes; --text gives a text itself. A file .txt is one
    text, in UTF-8; a folder whose only files are such has texts, any other has photos. --json
    prints one object per image: image, revision, predictions, unknown_probability, is_unknown,
    error. If files of a folder were left out, a last object has the key left_out with reason, count
    and names. Exit status 1 if an image could not be classified.
    """
    inputs = given_inputs(images, texts)
    with connected(server) as client:
        stream = partial(client.classify_stream, model, revision=revision, top_k=top_k)
        if out is not None:
            write_table(inputs, stream, out)
        classify_inputs(inputs, stream, as_json=as_json)
