"""Progress of an encoder process, in memory that it shares with the server."""

from __future__ import annotations

import mmap
import socket
import struct

from topwork.serving.encoders import shared_memory

_LAYOUT = struct.Struct("Q")


class Progress:
    """Item in progress. One process writes, the other one reads.

    A message would wake the server for each item; this costs nothing until the process dies or
    takes too long.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def shared(cls, link: socket.socket) -> Progress:
        """Return the progress of the process at the other end of ``link``."""
        return cls(shared_memory.share(link, "progress", _LAYOUT.size))

    @classmethod
    def received(cls, link: socket.socket) -> Progress:
        """Return the progress of this process, from the server at the other end of ``link``."""
        return cls(shared_memory.receive(link, _LAYOUT.size))

    @property
    def item(self) -> int:
        """Item in progress; 0: none."""
        item: int = _LAYOUT.unpack_from(self._memory)[0]
        return item

    @item.setter
    def item(self, item: int) -> None:
        _LAYOUT.pack_into(self._memory, 0, item)
