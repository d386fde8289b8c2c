"""Memory that the server shares with an encoder process, passed as a file through their socket."""

from __future__ import annotations

import mmap
import os
import socket


def share(link: socket.socket, name: str, size: int) -> mmap.mmap:
    """Return new memory of ``size`` bytes, zeroed, which the process at the other end receives."""
    descriptor = os.memfd_create(name)
    os.ftruncate(descriptor, size)
    socket.send_fds(link, [b"\0"], [descriptor])
    return _mapped(descriptor, size)


def receive(link: socket.socket, size: int) -> mmap.mmap:
    """Return the memory that the server at the other end shares."""
    _, (descriptor,), _, _ = socket.recv_fds(link, 1, 1)
    return _mapped(descriptor, size)


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    memory = mmap.mmap(descriptor, size)
    os.close(descriptor)
    return memory
