"""Targets of supervised worker processes; a process that is spawned imports them by name."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path


def work(pipe: Connection, directory: Path) -> None:
    """Leave a file named by the process id, say that it works, and return when the pipe closes."""
    (directory / str(os.getpid())).touch()
    pipe.send(True)
    try:
        pipe.recv()
    except EOFError:
        (directory / str(os.getpid())).unlink()


def work_deaf(pipe: Connection, directory: Path) -> None:
    """Like ``work``, and report whether SIGINT and SIGTERM are blocked."""
    blocked = {signal.SIGINT, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    (directory / f"blocked {blocked}").touch()
    work(pipe, directory)


def end(_pipe: Connection, status: int) -> None:
    """End at once with an exit status."""
    os._exit(status)
