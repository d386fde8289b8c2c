"""Loop of an encoder process: takes one item after the other, until its server ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import msgspec
import structlog
from PIL import Image

from topwork.runtime import logs, process
from topwork.runtime.relay import Format
from topwork.runtime.supervisor import NAME
from topwork.serving.encoders.decoding import cancelled
from topwork.serving.encoders.encoder import NICE, Item
from topwork.serving.encoders.messages import Decode, Encode, Message, Unframer, frame
from topwork.serving.encoders.progress import Progress

log = structlog.get_logger(__name__)

RECEIVED = 2**18
"""Raising it reads a large image by fewer calls (bytes)."""

MOST_HELD = 3
"""Raising it wakes the server less often, for answers that come later, while many images wait."""

MIN_WAITING = 2
"""Number of items that must wait in this process for it to hold a result back."""

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent ends."""

QUICK_BYTES = 10**6
"""Largest encoded image for which results are held back."""

T = TypeVar("T", Encode, Decode)
R = TypeVar("R")


def connect(parent: Connection, log_format: Format) -> socket.socket:
    """Configure this process, which ends with its server; return its link to the server."""
    process.configure()
    logs.configure(log_format)
    os.nice(NICE)
    _end_with_parent()
    return socket.socket(fileno=os.dup(parent.fileno()))


class ProcessLoop(ABC, Generic[T, R]):
    """Loop over items, which come in requests T; R are all requests.

    It reads its socket before each stage, to learn of cancels.
    """

    def __init__(
        self, link: socket.socket, requests: msgspec.msgpack.Decoder[R], most_growth: int
    ) -> None:
        self._link = link
        self._progress = Progress.received(link)
        self._most_growth = most_growth
        self._unframer = Unframer(requests)
        self._sending = threading.Lock()
        self._waiting: deque[T] = deque()
        self._cancelled: set[int] = set()
        self._held: list[Message] = []
        self._base: int | None = None
        """Resident memory before the first image after a load (bytes)."""

    def run(self) -> NoReturn:
        """Work for ever."""
        while True:
            self._receive(wait=not self._waiting)
            if self._waiting:
                self._begin(self._waiting.popleft())

    @abstractmethod
    def _take(self, message: R) -> None:
        """Take a message from the server."""

    @abstractmethod
    def _work(self, task: T) -> None:
        """Send the result of an item."""

    def _is_loading(self) -> bool:
        """Return True while something else than an image takes memory."""
        return False

    def _begin(self, task: T) -> None:
        item = task.item
        self._progress.item = item.id
        if self._base is None:
            self._base = resident_bytes()
        if self._is_cancelled(item):
            self._send(cancelled(item))
        else:
            self._work(task)
        self._progress.item = 0
        self._cancelled.discard(item.id)
        self._watch_memory()

    def _watch_memory(self) -> None:
        """End this process if it keeps too much memory after huge images."""
        base, loading = self._base, self._is_loading()
        if base is None or loading or resident_bytes() - base <= self._most_growth:
            return
        _free_memory()
        if (kept := resident_bytes() - base) > self._most_growth:
            name = os.environ.get(NAME, "")
            log.warning("encoder process keeps memory and is replaced", process=name, bytes=kept)
            self._flush()
            logs.exit_process(0)

    def _cancel(self, identifier: int) -> None:
        """Drop an item that waits or is in progress; else its result is on its way."""
        if identifier in {self._progress.item, *(waiting.item.id for waiting in self._waiting)}:
            self._cancelled.add(identifier)

    def _is_cancelled(self, item: Item) -> bool:
        self._receive(wait=False)
        return item.id in self._cancelled

    def _receive(self, *, wait: bool) -> None:
        """Take all messages that have arrived; with ``wait``, at least one."""
        while True:
            try:
                data = self._link.recv(RECEIVED, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:  # the server has ended
                logs.exit_process(0)
            for message in self._unframer.feed(data):
                wait = False
                self._take(message)

    def _send(self, message: Message) -> None:
        """Send a message; hold it back while there is other work, to wake the server less often."""
        with self._sending:
            self._held.append(message)
            if len(self._held) >= MOST_HELD or not self._has_quick_work():
                self._flush()

    def _has_quick_work(self) -> bool:
        return (
            len(self._waiting) >= MIN_WAITING and len(self._waiting[0].item.content) <= QUICK_BYTES
        )

    def _flush(self) -> None:
        parts = [part for held in self._held for part in frame(held)]
        self._held.clear()
        with contextlib.suppress(ConnectionError):  # the server has ended
            self._link.sendall(b"".join(parts))


def _end_with_parent() -> None:
    """Let the kernel end this process with its server, even while a decoder hangs."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended meanwhile
        os._exit(0)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = Path("/proc/self/statm").read_bytes().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _free_memory() -> None:
    """Return unused memory to the system: that of Pillow and of the C library."""
    Image.core.clear_cache(0)  # type: ignore[attr-defined]  # not in its stubs
    with contextlib.suppress(OSError, AttributeError):  # another C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
