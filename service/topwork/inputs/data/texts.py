"""Reader of labelled texts: ``.txt`` files, rows of tables, and sequences in FASTA files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from topwork.inputs.data import fasta
from topwork.inputs.data.annotations import table_of
from topwork.inputs.data.parquet import (
    parquet_columns,
    parquet_files,
    parquet_table,
    splits_of,
)
from topwork.inputs.data.photos import Found
from topwork.inputs.data.tables import (
    Table,
    decode,
    parse_json,
    read_csv,
    read_json_lines,
)
from topwork.inputs.data.text_tables import (
    TextTable,
    find_text_columns,
    has_texts,
    read_text_tables,
)
from topwork.inputs.data.trees import DiskTree, Tree
from topwork.printable import file_name

SUFFIXES = (".txt", *fasta.SUFFIXES)
"""Extensions of files of texts."""

READERS: dict[str, Callable[[bytes, str], Table]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}
"""Readers of tables by the extension of the file."""


def is_text_file(path: Path) -> bool:
    """Return True if a file is FASTA, or a table that has texts and names no files.

    Raises InvalidInput for a table that cannot be read.
    """
    if fasta.is_fasta(path):
        return True
    suffix = path.suffix.casefold()
    if suffix == ".parquet":
        return has_texts(parquet_columns(path))
    if suffix == ".json":
        return _list_table(path) is not None
    return suffix in READERS and has_texts(_read_table(DiskTree(path.parent), path).columns)


def text_files(tree: Tree, root: Path) -> list[Path]:
    """Return the files of texts that are in no class folder: tables, or FASTA.

    Empty if there are folders besides. Raises InvalidInput for a table that cannot be read.
    """
    listing = tree.list_folder(root)
    if isinstance(tree, DiskTree) and (files := parquet_files(tree, root)):
        return [path for path in files if has_texts(parquet_columns(path))]
    if listing.folders:
        return []
    texts = [omission.path for omission in listing.omitted if omission.reason == "text"]
    paths = sorted([*listing.files, *texts])
    return [path for path in paths if fasta.is_fasta(path)] or [
        path
        for path in paths
        if path.suffix.casefold() in READERS and has_texts(_read_table(tree, path).columns)
    ]


def read_text_files(tree: Tree, root: Path, files: list[Path]) -> Found:
    """Return the texts of tables, or the sequences of FASTA files. Raises InvalidInput."""
    if fasta.is_fasta(files[0]):
        return fasta.read_fasta(tree, files)
    splits = splits_of(files, root) if len(files) > 1 else {}
    tables = [
        TextTable(table=_read_table(tree, path), split=splits.get(path, "")) for path in files
    ]
    return read_text_tables(tables, root)


def _read_table(tree: Tree, path: Path) -> Table:
    suffix = path.suffix.casefold()
    if suffix == ".parquet":
        return parquet_table(path, find_text_columns)
    if suffix == ".json":
        table = _list_table(path)
        return table or Table(name=file_name(path.name), columns=(), rows=())
    return READERS[suffix](tree.read_table(path), file_name(path.name))


def _list_table(path: Path) -> Table | None:
    """Return the table of a JSON file that is a list of objects with texts, else None."""
    name = file_name(path.name)
    document = parse_json(decode(DiskTree(path.parent).read_table(path), name), name)
    if not (isinstance(document, list) and all(isinstance(row, dict) for row in document)):
        return None
    table = table_of(document, name)
    return table if has_texts(table.columns) else None
