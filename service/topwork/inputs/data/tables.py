"""Tables of text: CSV, TSV and JSON lines, read into rows with named columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from topwork.errors import InvalidInput
from topwork.printable import printable

DELIMITERS = ",;\t"
"""Characters that may separate the fields of a CSV file; the most frequent in the header does."""


_MAX_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table."""

    place: str
    """Place in the file, such as ``line 3``."""
    values: Mapping[str, object]
    """By column; the value of a missing column is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of a file."""

    name: str
    """Escaped name of the file for messages."""
    columns: tuple[str, ...]
    rows: Iterable[Row]
    """Can be iterated once; raises InvalidInput at a row that cannot be read."""

    def fail(self, place: str, problem: str) -> InvalidInput:
        """Return an error about a place in the file."""
        return InvalidInput(printable(f"{self.name}, {place}: {problem}"), field="data")


def read_csv(content: bytes, name: str) -> Table:
    """Return the table of a CSV file with a header, separated by commas, semicolons or tabs.

    Raises InvalidInput if it is not UTF-8 or empty, or a column has no name or a repeated one.
    """
    text = decode(content, name)
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def fields() -> Iterator[list[str]]:
        try:
            yield from (line for line in lines if line)
        except csv.Error as error:
            text = f"{name}, line {lines.line_num}: {error}"
            raise InvalidInput(text, field="data") from error

    records = fields()
    columns = tuple(column.strip() for column in next(records, []))
    _check_columns(columns, name)

    def rows() -> Iterator[Row]:
        for record in records:
            place = f"line {lines.line_num}"
            if len(record) != len(columns):
                raise InvalidInput(
                    f"{name}, {place}: {len(record)} fields; the header has {len(columns)}",
                    field="data",
                )
            yield Row(place=place, values=dict(zip(columns, record, strict=True)))

    return Table(name=name, columns=columns, rows=rows())


def read_json_lines(content: bytes, name: str) -> Table:
    """Return the table of a file with a JSON object per line.

    Raises InvalidInput if it is not UTF-8 or a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(decode(content, name).split("\n"), start=1):
        if line.strip():
            values = parse_json(line, f"{name}, line {number}")
            if not isinstance(values, dict):
                text = f"{name}, line {number}: a JSON object is needed, not {line.strip()[:40]}"
                raise InvalidInput(printable(text), field="data")
            rows.append(Row(place=f"line {number}", values=values))
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return Table(name=name, columns=columns, rows=rows)


def parse_json(text: str, name: str) -> object:
    """Return parsed JSON. Raises InvalidInput."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name}: invalid JSON: {error}", field="data") from error


def decode(content: bytes, name: str) -> str:
    """Return UTF-8 text without its byte order mark. Raises InvalidInput."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{name} is not UTF-8 at byte {error.start}: save it in that encoding", field="data"
        ) from error


def clip(value: object) -> str:
    """Return text for a message, of at most 100 characters."""
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def list_columns(names: Sequence[str]) -> str:
    """Return the first five names for a message."""
    return ", ".join([clip(name) for name in names[:5]] + ["..."] * (len(names) > 5))


def _check_columns(columns: tuple[str, ...], name: str) -> None:
    if not columns:
        raise InvalidInput(f"{name} is empty", field="data")
    repeated = sorted({column for column in columns if columns.count(column) > 1 and column})
    if repeated:
        text = f"{name} has two columns {clip(repeated[0])!r}: each needs its own name"
        raise InvalidInput(printable(text), field="data")
