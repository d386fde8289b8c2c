"""Progress of an encoder process, in memory that it shares with the server."""

from __future__ import annotations

import mmap
import os
import socket
import struct

_LAYOUT = struct.Struct("Q")


class Progress:
    """Item in progress. One process writes, the other one reads.

    A message would wake the server for each item; this costs nothing until the process dies or
    takes too long.
    """

    def __init__(self, descriptor: int) -> None:
        """Map a file, and close its ``descriptor``."""
        os.ftruncate(descriptor, _LAYOUT.size)
        self._memory = mmap.mmap(descriptor, _LAYOUT.size)
        os.close(descriptor)

    @classmethod
    def shared(cls, link: socket.socket) -> Progress:
        """Return the progress of the process at the other end of ``link``."""
        descriptor = os.memfd_create("progress")
        socket.send_fds(link, [b"\0"], [descriptor])
        return cls(descriptor)

    @classmethod
    def received(cls, link: socket.socket) -> Progress:
        """Return the progress of this process, from the server at the other end of ``link``."""
        _, (descriptor,), _, _ = socket.recv_fds(link, 1, 1)
        return cls(descriptor)

    @property
    def item(self) -> int:
        """Item in progress; 0: none."""
        item: int = _LAYOUT.unpack_from(self._memory)[0]
        return item

    @item.setter
    def item(self, item: int) -> None:
        _LAYOUT.pack_into(self._memory, 0, item)
