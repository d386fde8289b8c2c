"""Parts: Parquet files with the embeddings of photos, of the same bytes for the same photos.

pyarrow is imported here when the first part is written or read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def read_part(source: Path | io.BytesIO, *, name: str, plan: str, part: int) -> list[PartRow]:
    """Return the rows of a part. Raises Corrupt, with its name, if damaged or of another plan."""
    _, parquet = _pyarrow()
    try:
        table = parquet.read_table(source)
        if _metadata(table.schema) != {"plan": plan, "part": part}:
            raise ValueError("it is of another plan")
        embeddings = table["embedding"].combine_chunks()
        matrix = np.asarray(embeddings.flatten(), dtype=np.float32).reshape(
            -1, embeddings.type.list_size
        )
        present = np.cumsum(~np.asarray(embeddings.is_null())) - 1  # `flatten` leaves nulls out
        rows = table.drop_columns(["embedding"]).to_pylist()
        return [_row(row, matrix, int(place)) for row, place in zip(rows, present, strict=True)]
    except Exception as error:  # pyarrow raises many classes on damaged files
        raise Corrupt(f"{name} cannot be read: {error}; delete it and run embed again") from error


def _columns(row: PartRow) -> Mapping[str, Any]:
    fixed = {
        "split": row.split,
        "name": row.name,
        "label": row.label,
        "group": row.group_id,
        "header": None if row.header is None else json.dumps(row.header),
    }
    if isinstance(row.embedded, Skipped):
        nothing = dict.fromkeys(("digest", "content", "fingerprint", "embedding", "thumbnail"))
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


def _row(row: Mapping[str, Any], embeddings: Any, place: int) -> PartRow:
    embedded: Embedded
    if row["reason"] is not None:
        embedded = Skipped(
            name=row["name"], label=row["label"], reason=row["reason"], message=row["error"]
        )
    else:
        found = EmbeddedRow(
            digest=row["digest"],
            fingerprint=np.frombuffer(row["fingerprint"], dtype=np.uint8),
            embedding=embeddings[place],
            thumbnail=row["thumbnail"],
        )
        embedded = (row["content"], found)
    return PartRow(
        split=row["split"],
        name=row["name"],
        label=row["label"],
        group_id=row["group"],
        embedded=embedded,
        header=None if row["header"] is None else json.loads(row["header"]),
    )


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
