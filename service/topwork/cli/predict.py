"""``topwork predict``: classify inputs in this process, without a server."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import click

import topwork
from topwork import StreamResult
from topwork.bundle.signing.signatures import SigningFiles
from topwork.cli.image_rows import classify_inputs, given_inputs, image_arguments
from topwork.cli.options import require_signed_option, trusted_keys_option
from topwork.cli.parquet_table import out_option, write_table
from topwork.client.inputs import Content
from topwork.repository_option import repository_option
from topwork.storage.location import Location


@click.command()
@repository_option("Repository of the model.", exists=True, required=True)
@trusted_keys_option()
@require_signed_option
@click.argument("model")
@out_option
@image_arguments
def predict(
    repository: Location,
    trusted_keys: Path | None,
    require_signed: bool,
    model: str,
    out: Path | str | None,
    revision: int,
    top_k: int,
    as_json: bool,
    images: tuple[Path | str, ...],
    texts: tuple[str, ...],
) -> None:
    """Classify IMAGES with MODEL of a repository, without a server.

    IMAGES are files, folders or buckets of photos, texts or embeddings, as for `topwork classify`.
    The output is that of `topwork classify`, and the answers are the server's.
    """
    keys = SigningFiles(trusted_keys=trusted_keys, require_signed=require_signed)
    inputs = given_inputs(images, texts)
    opened = topwork.open(repository, model, revision=revision, signing=keys.read(publishes=False))

    def stream(contents: Iterator[Content]) -> Generator[StreamResult, None, None]:
        for result in opened.predict(contents, top_k=top_k):
            yield StreamResult(revision=opened.revision, result=result)

    if out is not None:
        write_table(inputs, stream, out)
    classify_inputs(inputs, stream, as_json=as_json)
