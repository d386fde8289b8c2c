"""Raw HTTP/2 peer (RFC 9113) that counts keepalive pings and pings as often as a test wants.

gRPC's own peers limit the rate of their pings, and do not show the frames that arrive.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
MAX_CONCURRENT_STREAMS = 3
ACK = 1


class Peer:
    """One end of a connection; a thread reads its frames until the other end closes it."""

    def __init__(self, connection: socket.socket, *, greeting: bytes = b"") -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self.pings = 0
        """Number of keepalive pings from the other end."""
        self.settings: dict[int, int] = {}
        """Settings of the other end."""
        self.goaway = b""
        """Debug text of the other end's GOAWAY."""
        self.closed = False
        """True if the other end closed the connection."""
        connection.sendall(greeting + frame(SETTINGS))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def connect(cls, port: int) -> Self:
        """Return the client's end of a new connection to the loopback."""
        return cls(socket.create_connection(("127.0.0.1", port)), greeting=PREFACE)

    @property
    def port(self) -> int:
        """Port of this end."""
        return int(self._connection.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the other end was first
            self._connection.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._connection.close()

    def ping(self) -> None:
        """Send a keepalive ping."""
        self._connection.sendall(frame(PING, payload=bytes(8)))

    def wait(
        self, seconds: float, *, pings: int = 0, settings: bool = False, closed: bool = False
    ) -> bool:
        """Wait for pings, settings or the close; return False after ``seconds``."""

        def arrived() -> bool:
            return (
                self.pings >= pings
                and (self.closed or not closed)
                and bool(self.settings or not settings)
            )

        with self._changed:
            return self._changed.wait_for(arrived, seconds)

    def _read(self) -> None:
        stream = self._connection.makefile("rb")
        try:
            while head := stream.read(9):
                if head == PREFACE[:9]:  # a client's preface is no frame
                    stream.read(len(PREFACE) - 9)
                    continue
                payload = stream.read(int.from_bytes(head[:3], "big"))
                with self._changed:
                    self._take(head[3], head[4], payload)
                    self._changed.notify_all()
        except OSError:
            pass  # reset, or closed by the test
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == PING and not flags & ACK:
            self.pings += 1
            self._connection.sendall(frame(PING, ACK, payload))
        elif kind == SETTINGS and not flags & ACK:
            self.settings.update(struct.iter_unpack(">HI", payload))
            self._connection.sendall(frame(SETTINGS, ACK))
        elif kind == GOAWAY:
            self.goaway = payload[8:]


def frame(kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame of stream 0, the connection."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, 0) + payload
