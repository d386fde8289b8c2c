"""Reader of Parquet files: manifests, and Hugging Face data sets whose rows contain the images.

pyarrow is imported here alone, when the first Parquet file is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.errors import InvalidInput, TopworkError
from topwork.inputs.data.archives import ArchiveTree, Member
from topwork.inputs.data.manifests import COLUMNS, Manifest, find_columns, read_manifests
from topwork.inputs.data.photos import Found
from topwork.inputs.data.spool import Spool, open_spool
from topwork.inputs.data.tables import Row, Table
from topwork.inputs.data.trees import DiskTree, Tree
from topwork.inputs.folders import Reason
from topwork.inputs.splits import split_role
from topwork.limits import DEFAULT_LIMITS
from topwork.printable import file_name, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 32
"""Raising it decodes more images of a Parquet file at a time and needs more memory."""

EMBEDDING = "embedding"
"""Column of embeddings."""

_MAX_DEPTH = 3
"""Raising it looks for Parquet files in deeper folders."""

_MAX_FOLDERS = 8
"""Raising it looks for Parquet files in folders with more sub-folders, such as many classes."""


def parquet_files(tree: Tree, folder: Path, *, depth: int = 0) -> list[Path]:
    """Return the Parquet files of a folder that has no other files; [] if it has some."""
    listing = tree.list_folder(folder)
    if listing.files:
        is_all = all(path.suffix.casefold() == ".parquet" for path in listing.files)
        return list(listing.files) if is_all and not listing.folders else []
    if depth == _MAX_DEPTH or len(listing.folders) > _MAX_FOLDERS:
        return []
    found: list[Path] = []
    for sub_folder in listing.folders:
        below = parquet_files(tree, sub_folder, depth=depth + 1)
        if not below:
            return []
        found += below
    return found


def read_parquet(files: Sequence[Path], root: Path) -> Found:
    """Return the photos of Parquet files below ``root``: manifests, or files with images.

    Files named like splits, such as ``train-00000-of-00002.parquet``, or in folders named so, are
    splits. Raises InvalidInput if pyarrow is missing, or a file is damaged or lacks columns.
    """
    splits = splits_of(files, root)
    if not _has_images(files[0]):
        tables = {file: parquet_table(file) for file in files}
        return read_manifests(
            DiskTree(root),
            [
                Manifest(table=table, folder=file.parent, split=splits[file])
                for file, table in tables.items()
            ],
        )
    rows: dict[Path, list[Row]] = {file: [] for file in files}
    tree = ArchiveTree(root, _members(rows, root))
    manifests = []
    for file, found in rows.items():
        columns = tuple(found[0].values) if found else ("path", "label")
        table = Table(name=file_name(file.name), columns=columns, rows=found)
        manifests.append(Manifest(table=table, folder=root, split=splits[file]))
    return read_manifests(tree, manifests)


def parquet_columns(file: Path) -> tuple[str, ...]:
    """Return the names of a Parquet file's columns. Raises InvalidInput."""
    with _opened(file) as opened:
        return tuple(opened.schema_arrow.names)


def parquet_table(file: Path, find: Callable[[Table], dict[str, str]] = find_columns) -> Table:
    """Return a Parquet file without images as a table of the columns that ``find`` returns.

    Raises InvalidInput.
    """
    with _opened(file) as opened:
        names = tuple(opened.schema_arrow.names)
        columns = find(Table(name=file_name(file.name), columns=names, rows=()))
        batches = opened.iter_batches(columns=list(columns.values()))
        values = [value for batch in batches for value in batch.to_pylist()]
        classes = _class_names(opened, columns["label"])
    rows = [
        Row(
            place=f"row {number}",
            values={**value, columns["label"]: _label(value[columns["label"]], classes)},
        )
        for number, value in enumerate(values)
    ]
    return Table(name=file_name(file.name), columns=names, rows=rows)


def has_embeddings(file: Path) -> bool:
    """Return True if a Parquet file has a column ``embedding`` of lists. Raises InvalidInput."""
    with _opened(file) as opened:
        import pyarrow as pa

        schema = opened.schema_arrow
        at = schema.get_field_index(EMBEDDING)
        return at >= 0 and _is_list(pa.types, schema.field(at).type)


def read_embeddings(file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays ``embeddings`` (N, D) and ``labels`` (N,), if there is a column of labels.

    Raises InvalidInput if rows have several widths, or none.
    """
    with _opened(file) as opened:
        import numpy as np  # not at the top: commands that call a server start without it
        from pyarrow import compute

        names = opened.schema_arrow.names
        found = {name.casefold(): name for name in names}
        label = next((found[name] for name in COLUMNS["label"] if name in found), None)
        table = opened.read(columns=[EMBEDDING, *([label] if label else [])])
        rows = table.column(EMBEDDING).combine_chunks()
        widths = set(compute.list_value_length(rows).to_pylist())
        if len(widths) != 1 or None in widths:
            shown = ", ".join(str(width or "none") for width in sorted(widths, key=str)[:5])
            raise InvalidInput(
                f"{file_name(file)} has embeddings of several widths, or none: {shown}",
                field="data",
                reason="EMBEDDING_INVALID",
            )
        arrays = {"embeddings": rows.flatten().to_numpy(zero_copy_only=False)}
        arrays["embeddings"] = arrays["embeddings"].reshape(len(rows), widths.pop())
        if label:
            classes = _class_names(opened, label)
            values = [_label(value, classes) for value in table.column(label).to_pylist()]
            arrays["labels"] = np.array(["" if value is None else str(value) for value in values])
        return arrays


def splits_of(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return the split of each file; empty if the files are not of several splits."""
    splits = {
        file: next(
            (
                name
                for name in (file.stem.partition("-")[0], *file.relative_to(root).parts[-2::-1])
                if split_role(name)
            ),
            "",
        )
        for file in files
    }
    if len(set(splits.values())) < 2:
        return dict.fromkeys(files, "")
    for file, split in splits.items():
        if not split:
            raise InvalidInput(
                f"{file_name(file)} is named like no split (train, val, test), but other files are",
                field="data",
            )
    return splits


def _members(
    rows: Mapping[Path, list[Row]], root: Path
) -> Iterator[tuple[str, Member | Reason | None]]:
    """Yield the images of the files by name, and fill in the rows that label them."""
    for file, found in rows.items():
        spool = open_spool(file)
        with _opened(file) as opened:
            name = file.relative_to(root).as_posix()
            table = Table(name=file_name(name), columns=tuple(opened.schema_arrow.names), rows=())
            columns = find_columns(table)
            classes = _class_names(opened, columns["label"])
            batches = opened.iter_batches(BATCH_ROWS, columns=list(columns.values()))
            number = 0
            for batch in batches:
                for values in batch.to_pylist():
                    content = _content(values[columns["path"]])
                    if content is None:
                        raise table.fail(f"row {number}", "the image has no bytes")
                    path = f"{name}:{number}"
                    yield path, _spooled(spool, content)
                    label = _label(values.pop(columns["label"]), classes)
                    more = {kind: values[columns[kind]] for kind in columns if kind in _MORE}
                    row = {"path": path, "label": label, **more}
                    found.append(Row(place=f"row {number}", values=row))
                    number += 1


_MORE = ("split", "group")


def _spooled(spool: Spool, content: bytes) -> Member:
    """Return an image as a member; one that is too large is not spooled, and never read."""
    kept = content if len(content) <= DEFAULT_LIMITS.max_image_bytes else b""
    return Member(len(content), partial(spool.read, spool.append(kept), len(content)))


def _content(value: object) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _label(value: object, classes: Sequence[str]) -> object:
    """Return a label: the name of a class if labels are numbers of classes; -1 is none."""
    if not classes or not isinstance(value, int):
        return value
    return classes[value] if 0 <= value < len(classes) else ""


def _class_names(opened: ParquetFile, column: str) -> Sequence[str]:
    """Return the names of the classes of Hugging Face's ClassLabel; empty if it is none."""
    metadata = opened.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return [str(name) for name in names] if isinstance(names, list) else ()


def _has_images(file: Path) -> bool:
    """Return True if the column of paths contains images."""
    with _opened(file) as opened:
        import pyarrow as pa

        schema = opened.schema_arrow
        table = Table(name=file_name(file.name), columns=tuple(schema.names), rows=())
        kind = schema.field(find_columns(table)["path"]).type
        kinds = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
        return any(is_kind(kind) for is_kind in kinds)


def _is_list(types: Any, kind: object) -> bool:
    return any(
        is_kind(kind) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list)
    )


@contextmanager
def _opened(file: Path) -> Iterator[ParquetFile]:
    """Open a Parquet file. Raises InvalidInput if it is damaged or pyarrow is missing."""
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{file_name(file)} is a Parquet file, which needs pyarrow: install topwork[parquet]",
            field="data",
        ) from error
    try:
        with ParquetFile(file) as opened:
            yield opened
    except TopworkError:
        raise
    except Exception as error:  # pyarrow raises many classes on damaged files
        text = printable(f"{file_name(file)} cannot be read as Parquet: {error}")
        raise InvalidInput(text, field="data") from error
