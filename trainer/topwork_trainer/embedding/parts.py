"""Parts: Parquet files with the embeddings of photos, of the same bytes for the same photos.

pyarrow is imported here when the first part is written or read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topwork.bundle.groups import group_id
from topwork.errors import Corrupt, InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.training.embed import Embedded, EmbeddedRow, Skipped
from topwork_trainer.audit_files import HeaderFacts

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = b"topwork"
"""Key of the file's metadata: JSON with the digest of the plan, and the number of the part."""

_EMBEDDED = ("digest", "content", "fingerprint", "embedding", "thumbnail")
"""Columns of a photo that was embedded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRow:
    """Row of a part: a photo that was embedded, or the reason why not."""

    split: str
    """Name of the held-out split; empty: to train on."""
    name: str
    label: str
    group_id: bytes
    """Id of its group, 16 bytes; zeros: none. The name of a group is not stored."""
    embedded: Embedded
    header: HeaderFacts | None
    """Properties of the file for the audit; None if they could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFacts:
    """What a part tells of a photo besides its embedding; its fields are columns."""

    split: str
    """Name of the held-out split; empty: to train on."""
    name: str
    label: str
    group: bytes
    """Id of its group, 16 bytes; zeros: none."""
    header: HeaderFacts | None
    """Properties of the file for the audit; None if they could not be read."""


def to_row(split: str, photo: Photo, embedded: Embedded, header: HeaderFacts | None) -> PartRow:
    """Return the row of a photo."""
    return PartRow(
        split=split,
        name=photo.name,
        label=photo.label,
        group_id=group_id(photo.group),
        embedded=embedded,
        header=header,
    )


def encode_part(rows: Sequence[PartRow], *, width: int, plan: str, part: int) -> bytes:
    """Return the content of a part; equal rows give equal bytes with the same pyarrow."""
    pa, parquet = _pyarrow()
    metadata = {METADATA: json.dumps({"plan": plan, "part": part}).encode()}
    schema = pa.schema(
        [
            pa.field("split", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("group", pa.binary(16), nullable=False),
            pa.field("digest", pa.binary(32)),
            pa.field("content", pa.binary(32)),
            pa.field("fingerprint", pa.binary(32)),
            pa.field("embedding", pa.list_(pa.float32(), width)),
            pa.field("thumbnail", pa.binary()),
            pa.field("header", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("error", pa.string()),
        ],
        metadata=metadata,
    )
    columns = [_columns(row) for row in rows]
    table = pa.table(
        {name: [each[name] for each in columns] for name in schema.names}, schema=schema
    )
    encoded = io.BytesIO()
    # Neither embeddings nor JPEG files become smaller.
    parquet.write_table(table, encoded, compression="none", use_dictionary=["label", "split"])
    return encoded.getvalue()


def is_part(source: Path | io.BytesIO, *, plan: str, part: int, photos: int) -> bool:
    """Return True if there is a whole part of this plan; reads its footer only."""
    _, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(source) as opened:
            return (
                _metadata(opened.schema_arrow) == {"plan": plan, "part": part}
                and opened.metadata.num_rows == photos
            )
    except FileNotFoundError:
        return False
    except Exception:  # pyarrow raises many classes on damaged files
        return False


def read_facts(source: Path | io.BytesIO, *, name: str, plan: str, part: int) -> list[PartFacts]:
    """Return the facts of a part's photos, without their embeddings.

    Raises Corrupt, with its name, if it is damaged or of another plan.
    """
    with _readable(name):
        table = _table(source, plan, part, [field.name for field in fields(PartFacts)])
        return [
            PartFacts(
                split=row["split"],
                name=row["name"],
                label=row["label"],
                group=row["group"],
                header=None if row["header"] is None else json.loads(row["header"]),
            )
            for row in table.to_pylist()
        ]


def read_embedded(source: Path | io.BytesIO, *, name: str, plan: str, part: int) -> list[Embedded]:
    """Return what was embedded of a part's photos, in order. Raises Corrupt as ``read_facts``."""
    with _readable(name):
        table = _table(source, plan, part, ["name", "label", *_EMBEDDED, "reason", "error"])
        embeddings = table["embedding"].combine_chunks()
        matrix = np.asarray(embeddings.flatten(), dtype=np.float32).reshape(
            -1, embeddings.type.list_size
        )
        present = np.cumsum(~np.asarray(embeddings.is_null())) - 1  # `flatten` leaves nulls out
        rows = table.drop_columns(["embedding"]).to_pylist()
        return [_embedded(row, matrix, int(at)) for row, at in zip(rows, present, strict=True)]


def _columns(row: PartRow) -> Mapping[str, Any]:
    fixed = {
        "split": row.split,
        "name": row.name,
        "label": row.label,
        "group": row.group_id,
        "header": None if row.header is None else json.dumps(row.header),
    }
    if isinstance(row.embedded, Skipped):
        nothing = dict.fromkeys(_EMBEDDED)
        error = {"reason": row.embedded.reason, "error": row.embedded.message}
        return {**fixed, **nothing, **error}
    content, found = row.embedded
    return {
        **fixed,
        "digest": found.digest,
        "content": content,
        "fingerprint": found.fingerprint.tobytes(),
        "embedding": found.embedding,
        "thumbnail": found.thumbnail,
        "reason": None,
        "error": None,
    }


def _embedded(row: Mapping[str, Any], embeddings: Any, place: int) -> Embedded:
    if row["reason"] is not None:
        return Skipped(
            name=row["name"], label=row["label"], reason=row["reason"], message=row["error"]
        )
    found = EmbeddedRow(
        digest=row["digest"],
        fingerprint=np.frombuffer(row["fingerprint"], dtype=np.uint8),
        embedding=embeddings[place],
        thumbnail=row["thumbnail"],
    )
    return row["content"], found


def _table(source: Path | io.BytesIO, plan: str, part: int, columns: list[str]) -> Any:
    _, parquet = _pyarrow()
    with parquet.ParquetFile(source) as opened:
        if _metadata(opened.schema_arrow) != {"plan": plan, "part": part}:
            raise ValueError("it is of another plan")
        return opened.read(columns)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pyarrow raises many classes on damaged files
        raise Corrupt(f"{name} cannot be read: {error}; delete it and run embed again") from error


def _metadata(schema: pa.Schema) -> object:
    return json.loads((schema.metadata or {}).get(METADATA, b"null"))


def _pyarrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet. Raises InvalidInput without them."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "embeddings are stored in Parquet files, which needs pyarrow: install topwork[parquet]",
            field="embeddings",
        ) from error
    return pa, parquet
