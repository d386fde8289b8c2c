"""Reader of tables whose rows have a text and its label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.inputs.data.archives import ArchiveTree, Member
from topwork.inputs.data.manifests import COLUMNS, Manifest, known_columns, read_manifests
from topwork.inputs.data.photos import Found
from topwork.inputs.data.tables import Row, Table, clip, list_columns
from topwork.inputs.folders import Reason
from topwork.printable import printable

TEXT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "content", "sequence"),
    **{kind: names for kind, names in COLUMNS.items() if kind != "path"},
}
"""Names of columns by their meaning, in upper or lower case; of several the first is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of texts."""

    table: Table
    split: str = ""
    """Split of all its rows; empty: as its column says."""


def has_texts(columns: Sequence[str]) -> bool:
    """Return True if rows have a text and a label, and name no file."""
    return (
        "path" not in known_columns(columns)
        and {"text", "label"} <= known_columns(columns, TEXT_COLUMNS).keys()
    )


def find_text_columns(table: Table) -> dict[str, str]:
    """Return the table's column of each meaning. Raises InvalidInput if texts or labels lack."""
    columns = known_columns(table.columns, TEXT_COLUMNS)
    for kind, text in (("text", "texts"), ("label", "labels")):
        if kind not in columns:
            shown = list_columns(table.columns) or "none"
            raise InvalidInput(
                printable(
                    f"{table.name} has no column of {text}: name one of its columns "
                    f"{' or '.join(TEXT_COLUMNS[kind])}; they are: {shown}"
                ),
                field="data",
            )
    return columns


def read_text_tables(tables: Sequence[TextTable], root: Path) -> Found:
    """Return the texts of tables in or below ``root``, each named by its file and row.

    Raises InvalidInput if columns of texts or labels are missing, or a row has no text or an
    unknown split.
    """
    rows: list[list[Row]] = [[] for _ in tables]
    tree = ArchiveTree(root, _members(tables, rows))
    manifests = [
        Manifest(
            table=Table(name=each.table.name, columns=_columns(found), rows=found),
            folder=root,
            split=each.split,
        )
        for each, found in zip(tables, rows, strict=True)
    ]
    return read_manifests(tree, manifests)


def _columns(rows: Sequence[Row]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in rows for name in row.values)
    return tuple(names) or ("path", "label")


def _members(
    tables: Sequence[TextTable], rows: Sequence[list[Row]]
) -> Iterator[tuple[str, Member | Reason | None]]:
    """Yield the texts as files, and fill in the rows that label them."""
    for each, found in zip(tables, rows, strict=True):
        table = each.table
        columns = find_text_columns(table)
        meanings = {column: kind for kind, column in columns.items()}
        for row in table.rows:
            content = _content(table, row, columns["text"])
            name = f"{table.name}:{row.place.rpartition(' ')[2]}"
            yield name, Member(len(content), partial(_first, content))
            values = {
                meanings.get(column, column): value
                for column, value in row.values.items()
                if column != columns["text"]
            }
            found.append(Row(place=row.place, values={**values, "path": name}))


def _first(content: bytes, most: int) -> bytes:
    return content[:most]


def _content(table: Table, row: Row, column: str) -> bytes:
    value = row.values.get(column)
    if value is None:
        return b""
    if isinstance(value, str | int | float):
        return str(value).encode("utf-8", "surrogatepass")
    problem = f"the column {clip(column)!r} has a {type(value).__name__}, not a text"
    raise table.fail(row.place, problem)
