"""HTTP requests of tests, with the standard library's client."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

SECONDS = 60.0
BOUNDARY = "a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"

Parts = Sequence[tuple[str, str | tuple[str, bytes]]]
"""Parts of a form in order: (name, text), or (name, (file name, content))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response."""

    code: int
    headers: Mapping[str, str]
    """By name in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Code, status and reason of an error."""
        error = self.json["error"]
        reasons = [detail["reason"] for detail in error["details"] if "reason" in detail]
        assert error["code"] == self.code
        return self.code, error["status"], next(iter(reasons), "")


def connect(address: str, *, tls: ssl.SSLContext | None = None, source: str = "") -> HTTPConnection:
    """Return a connection to HOST:PORT, from the address ``source`` if it is given."""
    where = (source, 0) if source else None
    if tls is not None:
        return HTTPSConnection(address, timeout=SECONDS, context=tls, source_address=where)
    return HTTPConnection(address, timeout=SECONDS, source_address=where)


def ask(
    address: str,
    path: str,
    *,
    verb: str = "",
    body: bytes | None = None,
    form: Parts | None = None,
    tree: object = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    source: str = "",
) -> Answer:
    """Send a request on a connection of its own; GET unless it has a body, a form or JSON."""
    given = dict(headers or {})
    if form is not None:
        body = encode(form)
        given.setdefault("content-type", FORM)
    elif tree is not None:
        body = json.dumps(tree).encode()
        given.setdefault("content-type", "application/json")
    connection = connect(address, tls=tls, source=source)
    try:
        connection.request(verb or ("GET" if body is None else "POST"), path, body, given)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(code=response.status, headers=found, body=response.read())
    finally:
        connection.close()


def encode(form: Parts) -> bytes:
    """Return a form's body."""
    return b"".join([*map(encode_part, form), f"--{BOUNDARY}--\r\n".encode()])


def encode_part(part: tuple[str, str | tuple[str, bytes]]) -> bytes:
    """Return one part of a form."""
    name, value = part
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    if isinstance(value, str):
        return f"{head}\r\n\r\n{value}\r\n".encode()
    filename, content = value
    head = f'{head}; filename="{filename}"\r\nContent-Type: application/octet-stream'
    return f"{head}\r\n\r\n".encode() + content + b"\r\n"


def events(body: bytes) -> Iterator[dict[str, str]]:
    """Yield the Server-Sent Events of a body, without comments."""
    for block in body.decode().split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        if lines:
            yield {name: value for name, _, value in lines}
