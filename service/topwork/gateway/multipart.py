"""Streaming parser of multipart/form-data: one part in memory at a time, nothing on disk."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from topwork.errors import InvalidInput
from topwork.gateway.errors import HttpError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD_BYTES = 65_536
"""Raising it accepts longer fields that are no files."""

_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}
"""Escapes in names, as the HTML standard has browsers write them."""
_ESCAPED = re.compile("|".join(_ESCAPES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: a file if it has a file name or a content type, otherwise a field."""

    name: str
    filename: str
    is_file: bool
    content: bytes
    content_type: str = ""
    """As the client says, in lower case."""

    def text(self) -> str:
        """Return the value of a field. Raises InvalidInput if it is not UTF-8."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"form field {self.name[:80]!r} is not UTF-8", field=self.name[:80]
            ) from error


async def parts(
    chunks: AsyncIterable[bytes], content_type: str, *, most_bytes: int
) -> AsyncIterator[Part]:
    """Yield the parts of a body in order, each when it is complete.

    Raises InvalidInput for a malformed or truncated body, HttpError for a part with more than
    ``most_bytes``.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("its Content-Type has no boundary; let your HTTP client set it")
    collector = _Collector(most_bytes)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        async for chunk in chunks:
            parser.write(chunk)
            for part in collector.take():
                yield part
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not collector.ended:
        raise _malformed("it ends before its closing boundary")


class _Collector:
    """Callbacks of MultipartParser that collect parts."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._ready: list[Part] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = bytearray()
        self._value = bytearray()
        self._content = bytearray()
        self._field = ""
        self._filename = ""
        self._content_type = ""
        self._is_file = False
        self.ended = False

    def callbacks(self) -> MultipartCallbacks:
        """Return the callbacks for a parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def take(self) -> list[Part]:
        """Return the parts that are complete."""
        ready, self._ready = self._ready, []
        return ready

    def _begin(self) -> None:
        self._headers = {}
        self._content = bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed('a part has no "Content-Disposition: form-data; name=..."')
        self._field = _name(options[b"name"])
        self._filename = _name(options.get(b"filename", b""))
        given = self._headers.get(b"content-type", b"text/plain")
        self._content_type = given.decode(errors="replace").lower()
        self._is_file = b"filename" in options or not self._content_type.startswith("text/")

    def _add(self, data: bytes, start: int, end: int) -> None:
        size = len(self._content) + end - start
        most = self._most if self._is_file else FIELD_BYTES
        if size > most:
            raise HttpError(
                413,
                f"part {(self._filename or self._field)[:80]!r} has more than {most} bytes",
                reason="BODY_TOO_LARGE",
            )
        self._content += data[start:end]

    def _end(self) -> None:
        self._ready.append(
            Part(
                name=self._field,
                filename=self._filename,
                is_file=self._is_file,
                content=bytes(self._content),
                content_type=self._content_type,
            )
        )

    def _finish(self) -> None:
        self.ended = True


def _name(value: bytes) -> str:
    """Return a name without the escapes of browsers and curl."""
    return _ESCAPED.sub(lambda match: _ESCAPES[match[0]], value.decode(errors="replace"))


def _malformed(why: str) -> InvalidInput:
    return InvalidInput(
        f"the body is not valid multipart/form-data: {why}",
        field="body",
        reason="INVALID_MULTIPART",
    )
