"""Parquet file of the answers of ``topwork classify`` and ``topwork predict``, a row per input."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import click

from topwork import Audio, Embedding, StreamResult, Text
from topwork.bucket_files import new_object
from topwork.cli.image_rows import Classify, answered, interrupts, photo_bar
from topwork.cli.input_files import Inputs
from topwork.cli.input_kinds import Item
from topwork.client.inputs import Content
from topwork.errors import InvalidInput
from topwork.storage.files import new_file
from topwork.terminal import PathOrURL

GROUP_ROWS = 10_000
"""Raising it makes row groups larger: rows in memory before they are written."""

out_option = click.option(
    "--out",
    type=PathOrURL(dir_okay=False, path_type=Path),
    help="Parquet file to write, whole or not at all, instead of lines, a path or the URL of an "
    "object such as s3://bucket/part.parquet: name, digest (sha256), "
    "labels, probabilities, unknown_probability, is_unknown, revision, error. Extra: parquet.",
)
"""Option ``out`` of a command."""


@dataclass(slots=True)
class _Read:
    """An input, and the digest of its content once it was read."""

    item: Item
    digest: str | None = None

    def content(self) -> Content:
        """Read the input. Raises OSError or ImageError."""
        content = self.item[1]()
        self.digest = hashlib.sha256(_data(content)).hexdigest()
        return content


def write_table(inputs: Inputs, classify: Classify, out: Path | str) -> None:
    """Write the answers to ``out``, and exit with status 1 if an input was not classified.

    Raises InvalidInput if pyarrow is not installed, or the object of a URL
    cannot be written, OSError if the file cannot.
    """
    pa, parquet = _pyarrow()
    schema = pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("digest", pa.string()),
            pa.field("labels", pa.list_(pa.string()), nullable=False),
            pa.field("probabilities", pa.list_(pa.float64()), nullable=False),
            pa.field("unknown_probability", pa.float64()),
            pa.field("is_unknown", pa.bool_(), nullable=False),
            pa.field("revision", pa.int64()),
            pa.field("error", pa.string()),
        ]
    )
    failed = False
    sources = [_Read(item) for item in inputs.items]
    with (
        _new(out) as file,
        _writer(parquet, file, schema) as writer,
        closing(answered(sources, _Read.content, classify)) as answers,
        _progress(len(sources)) as advance,
        interrupts() as check_interrupt,
    ):

        def rows() -> Iterator[dict[str, Any]]:
            for source, answer in answers:
                yield _row(source, answer)
                advance()
                check_interrupt()

        every = rows()
        while group := list(islice(every, GROUP_ROWS)):
            failed |= any(row["error"] is not None for row in group)
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    sys.exit(1 if failed else 0)


def _row(source: _Read, answer: StreamResult | str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": source.item[0],
        "digest": source.digest,
        "labels": [],
        "probabilities": [],
        "unknown_probability": None,
        "is_unknown": False,
        "revision": None,
        "error": None,
    }
    if isinstance(answer, str):
        return {**row, "error": answer}
    row["revision"] = answer.revision
    result = answer.result
    if result.error is not None:
        return {**row, "error": str(result.error)}
    return {
        **row,
        "labels": [prediction.label for prediction in result.predictions],
        "probabilities": [prediction.probability for prediction in result.predictions],
        "unknown_probability": result.unknown_probability,
        "is_unknown": bool(result.is_unknown),
    }


def _data(content: Content) -> bytes:
    if isinstance(content, Embedding):
        return content.values
    return content.data if isinstance(content, Text | Audio) else content


def _new(out: Path | str) -> AbstractContextManager[BinaryIO]:
    return new_file(out) if isinstance(out, Path) else new_object(out, field="out")


@contextmanager
def _writer(parquet: Any, file: BinaryIO, schema: Any) -> Iterator[Any]:
    with parquet.ParquetWriter(file, schema) as writer:
        yield writer


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Yield a function that advances a bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with photo_bar() as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "--out writes Parquet, which needs pyarrow: install topwork[parquet]", field="out"
        ) from error
    return pa, parquet
