"""DNS server on the loopback whose one name resolves to addresses that a test changes."""

from __future__ import annotations

import ipaddress
import socketserver
import struct
import threading
from collections.abc import Iterable
from typing import Any, Self

A = 1
"""Type of a query for IPv4 addresses."""
HEADER = struct.Struct("!6H")
ANSWER = struct.Struct("!3HIH")
"""Compressed name, type, class, seconds to live, and length of an answer."""


class Names(socketserver.ThreadingUDPServer):
    """Answers every query for an IPv4 address with ``addresses``, and others with none.

    A context manager: it listens from its construction, and answers inside the ``with`` block.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self.addresses = list(addresses)
        self.queries = 0
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def target(self, name: str, port: int) -> str:
        """Return gRPC's target of a name that is resolved here."""
        return f"dns://127.0.0.1:{self.server_address[1]}/{name}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(socketserver.BaseRequestHandler):
    server: Names

    def handle(self) -> None:
        query, connection = self.request
        identifier, *_ = HEADER.unpack_from(query)
        question = query[HEADER.size : query.index(b"\0", HEADER.size) + 5]
        found: list[str] = []
        if int.from_bytes(question[-4:-2]) == A:
            self.server.queries += 1
            found = list(self.server.addresses)
        flags: Any = 0x8580  # a response, authoritative, recursion desired and available
        answer = HEADER.pack(identifier, flags, 1, len(found), 0, 0) + question
        for address in found:
            # The name is a pointer to that of the question.
            answer += ANSWER.pack(0xC000 | HEADER.size, A, 1, 0, 4)
            answer += ipaddress.IPv4Address(address).packed
        connection.sendto(answer, self.client_address)
