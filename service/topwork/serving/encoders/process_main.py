"""Encoder process: encodes one item after the other, until its server ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import structlog
from PIL import Image

from topwork.errors import NotReady
from topwork.limits import InputLimits
from topwork.runtime import logs, process
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.runtime.supervisor import NAME
from topwork.serving.encoders.encoder import NICE, Item
from topwork.serving.encoders.messages import (
    REQUESTS,
    Cancel,
    Encode,
    Load,
    Loaded,
    NotLoaded,
    Request,
    Response,
    Unframer,
    Unload,
    frame,
)
from topwork.serving.encoders.pipeline import Decoded, Pipeline, cancelled, text_of
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


def run(
    parent: Connection,
    provider: Provider,
    limits: InputLimits,
    log_format: Format,
    most_growth: int,
) -> None:
    """Encode the items that arrive through the pipe ``parent``; exit when it closes."""
    process.configure()
    logs.configure(log_format)
    os.nice(NICE)
    _end_with_parent()
    link = socket.socket(fileno=os.dup(parent.fileno()))
    pipeline = Pipeline(provider=provider, limits=limits)
    EncoderLoop(link, Progress.received(link), pipeline, most_growth).run()


class EncoderLoop:
    """Loop of an encoder process. It reads its socket before each stage, to learn of cancels."""

    def __init__(
        self, link: socket.socket, progress: Progress, pipeline: Pipeline, most_growth: int
    ) -> None:
        self._link = link
        self._progress = progress
        self._pipeline = pipeline
        self._most_growth = most_growth
        self._unframer = Unframer(REQUESTS)
        self._sending = threading.Lock()
        self._waiting: deque[Encode] = deque()
        self._cancelled: set[int] = set()
        self._held: list[Response] = []
        self._base: int | None = None
        """Resident memory before the first image after a load (bytes)."""
        self._loading: list[threading.Thread] = []
        """Loads in progress, which take memory for a time."""

    def run(self) -> NoReturn:
        """Encode items for ever."""
        while True:
            self._receive(wait=not self._waiting)
            if self._waiting:
                self._encode(self._waiting.popleft())

    def _encode(self, message: Encode) -> None:
        item = message.item
        self._progress.item = item.id
        if self._base is None:
            self._base = resident_bytes()
        decoded = None if self._is_cancelled(item) else self._pipeline.decode(item)
        if decoded is None or self._is_cancelled(item):
            self._send(cancelled(item))
        elif isinstance(decoded, Decoded):
            self._pipeline.embed(decoded, self._send, wide=message.wide)
        else:
            self._send(decoded)
        self._progress.item = 0
        self._cancelled.discard(item.id)
        self._watch_memory()

    def _watch_memory(self) -> None:
        """End this process if it keeps too much memory after huge images."""
        base = self._base
        self._loading = [thread for thread in self._loading if thread.is_alive()]
        if base is None or self._loading or resident_bytes() - base <= self._most_growth:
            return
        _free_memory()
        if (kept := resident_bytes() - base) > self._most_growth:
            name = os.environ.get(NAME, "")
            log.warning("encoder process keeps memory and is replaced", process=name, bytes=kept)
            self._flush()
            logs.exit_process(0)

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

    def _take(self, message: Request) -> None:
        match message:
            case Encode():
                self._waiting.append(message)
            case Cancel():
                present = {self._progress.item, *(waiting.item.id for waiting in self._waiting)}
                if message.id in present:  # else its result is on its way
                    self._cancelled.add(message.id)
            case Load():  # in a thread, since images of other models must not wait
                thread = threading.Thread(target=self._load, args=(message,), daemon=True)
                self._loading.append(thread)
                thread.start()
            case Unload():
                self._pipeline.unload(message.digest)
                self._base = None

    def _load(self, message: Load) -> None:
        digest = message.info.digest
        try:
            backbone = self._pipeline.load(message.info, message.model, cores=message.cores)
        except Exception as error:
            missing = isinstance(error, NotReady)
            self._send(NotLoaded(digest=digest, message=text_of(error), provider_missing=missing))
        else:
            one_core, all_cores = backbone.seconds
            self._send(
                Loaded(digest=digest, one_core=one_core, all_cores=all_cores, check=backbone.check)
            )
        self._base = None

    def _send(self, message: Response) -> None:
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
