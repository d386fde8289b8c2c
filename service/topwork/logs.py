"""How logs are written: facts as fields, to standard error."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from typing import Any, Literal, TextIO

import msgspec
import structlog

Format = Literal["text", "json"]

PAUSE = 0.05
"""Seconds that a routine line may wait to be written."""


def configure(log_format: Format) -> None:
    """Send this process's logs, the libraries' too, to standard error as text or JSON lines."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    render: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the others print all locals
            )
        ]
    )
    # A buffer of its own: without one (PYTHONUNBUFFERED=1) a write may be cut by another's.
    lines = Lines(os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace"))
    lines.start()
    # Not by way of the standard library, which takes three times as long: a line a call adds up.
    structlog.configure(
        processors=[*shared, *render],
        logger_factory=lambda *_: lines,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    adopt("dbos")


class Lines:
    """Writes lines: warnings and worse at once, others within PAUSE, many at a time.

    A write lets go of the interpreter, and who answers thousands of calls waits to get it back as
    many times. What a killed process did not write is lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()  # a finaliser that logs may run while it is held
        self._waiting: list[str] = []
        self._news = threading.Event()

    def start(self) -> None:
        """Start the thread that writes, and write the rest when the process ends."""
        threading.Thread(target=self._work, name="logs", daemon=True).start()
        atexit.register(self.flush)

    def info(self, line: str) -> None:
        """Write a line soon."""
        with self._lock:
            self._waiting.append(line + "\n")
        self._news.set()

    def warning(self, line: str) -> None:
        """Write a line now, after those that wait."""
        self.info(line)
        self.flush()

    debug = info
    error = critical = warning

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            text, self._waiting = "".join(self._waiting), []
            if text:
                self._stream.write(text)
                self._stream.flush()

    def _work(self) -> None:
        while self._news.wait():
            time.sleep(PAUSE)
            self._news.clear()
            self.flush()


class _Handler(logging.Handler):
    """Lets what libraries log go the same way, in its turn."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        write = self._lines.info if record.levelno < logging.WARNING else self._lines.warning
        write(self.format(record))


def adopt(library: str) -> None:
    """Let a library's warnings and errors go the way of all others, not by handlers of its own."""
    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _json(fields: dict[str, Any], **_: Any) -> str:
    return msgspec.json.encode(fields, enc_hook=str).decode()
