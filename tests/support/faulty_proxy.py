"""HTTP proxy between a client and an S3 server that injects faults by rule."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

CUT_BEFORE, CUT_AFTER = "cut before", "cut after"
"""Connections that break before or after the server has got the request."""
LOST_503 = "503 after"
"""The server answered, but the client gets a 503."""
STALE = "stale"
"""The client gets the answer to the same request of before."""
ACCEPTED = "accepted"
"""The client gets a 200, whatever its conditions; the server gets nothing."""

Fault = str | int | float | None
"""One of the above, a status that the client gets instead, or seconds of delay."""

_CODES = {
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    503: "SlowDown",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the client."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(slots=True)
class Proxy:
    """A running proxy; ``rule`` returns the fault of each request."""

    upstream: int
    port: int = 0
    rule: Callable[[Request], Fault] = lambda _request: None
    requests: list[Request] = field(default_factory=list)
    injected: int = 0
    answers: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)

    def once(self, method: str, fault: Fault, *, matching: str = "") -> None:
        """Inject a fault into the next request of a method, whose target matches."""
        left = [True]

        def rule(request: Request) -> Fault:
            if request.method == method and re.search(matching, request.target) and left[0]:
                left[0] = False
                return fault
            return None

        self.rule = rule


@contextlib.contextmanager
def running(upstream: int) -> Iterator[Proxy]:
    """Yield a proxy of a port of this host."""
    proxy = Proxy(upstream)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                while (request := _read(self.rfile)) is not None and _answer(
                    proxy, request, self.wfile
                ):
                    pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def _read(stream: io.BufferedIOBase) -> Request | None:
    line = stream.readline().decode("latin-1").split()
    if len(line) < 2:
        return None
    headers = []
    while text := stream.readline().decode("latin-1").rstrip("\r\n"):
        name, _, value = text.partition(":")
        headers.append((name.lower(), value.strip()))
    length = int(dict(headers).get("content-length", "0"))
    return Request(line[0], line[1], tuple(headers), stream.read(length))


def _answer(proxy: Proxy, request: Request, stream: io.BufferedIOBase) -> bool:
    """Answer a request; return False if the connection ends."""
    proxy.requests.append(request)
    fault = proxy.rule(request)
    proxy.injected += fault is not None
    if fault == CUT_BEFORE:
        return False
    if isinstance(fault, int):
        _send(stream, request, fault, [], _error(fault))
        return True
    if isinstance(fault, float):
        time.sleep(fault)
    if fault == STALE and request.target in proxy.answers:
        _send(stream, request, *proxy.answers[request.target])
        return True
    if fault == ACCEPTED:
        _send(stream, request, 200, [("etag", '"0"')], b"")
        return True
    answer = _forward(proxy, request)
    proxy.answers.setdefault(request.target, answer)
    if fault == CUT_AFTER:
        return False
    if fault == LOST_503:
        _send(stream, request, 503, [], _error(503))
    else:
        _send(stream, request, *answer)
    return True


def _forward(proxy: Proxy, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=60)
    try:
        connection.putrequest(
            request.method, request.target, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.endheaders(request.body)
        response = connection.getresponse()
        kept = [
            (name, value)
            for name, value in response.getheaders()
            if name.lower() not in {"transfer-encoding", "connection"}
        ]
        return response.status, kept, response.read()
    finally:
        connection.close()


def _send(
    stream: io.BufferedIOBase,
    request: Request,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    lines = [f"HTTP/1.1 {status} {http.client.responses[status]}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if all(name.lower() != "content-length" for name, _ in headers) and status not in {204, 304}:
        lines.append(f"content-length: {len(body)}")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    stream.write(head if request.method == "HEAD" else head + body)
    stream.flush()


def _error(status: int) -> bytes:
    return f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>".encode()
