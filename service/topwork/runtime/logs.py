"""Structured logging: facts as fields, one text or JSON line each, to standard error."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, NoReturn, TextIO

import msgspec
import structlog

from topwork.runtime import relay
from topwork.runtime.relay import Format, redacted, visible

log = structlog.get_logger(__name__)


PAUSE = 0.05
"""Raising it writes routine lines later, in larger portions (seconds)."""

ATOMIC = 4096
"""Bytes that a pipe accepts at once (PIPE_BUF), so lines of other processes cannot cut a line."""

RELAY_SECONDS = 1.0
"""Raising it lets a process that ends wait longer for its last native output to be written."""

_ending = contextlib.ExitStack()
"""Callbacks for the end of this process."""


def configure(log_format: Format) -> None:
    """Send this process's logs, those of libraries too, to standard error as text or JSON lines.

    Warnings and uncaught exceptions are logged as well. A crash prints the Python stacks of all
    threads; SIGUSR1 does so without ending the process.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    text: list[structlog.typing.Processor] = [
        _escape,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
    ]
    render: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,  # ConsoleRenderer's own may print local variables
        *([structlog.processors.JSONRenderer(_json)] if log_format == "json" else text),
    ]
    # A separate buffer: without one (PYTHONUNBUFFERED=1) other writes may cut a line.
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    lines = Lines(stream)
    lines.start()
    _ending.callback(lines.flush)
    atexit.register(_ending.close)
    # Not through the standard library, which takes three times as long for each call's line.
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
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = sys.unraisablehook = _uncaught_elsewhere
    faulthandler.enable(stream)
    faulthandler.register(signal.SIGUSR1, file=2)


def capture(log_format: Format) -> None:
    """Turn other output, such as that of native code, into log lines.

    Child processes inherit it. Call it after ``configure``, whose lines go straight to standard
    error, as does the traceback of a crash.
    """
    originals: dict[int, int] = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed by whoever started this process
            originals[number] = os.dup(number)
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", relay.__file__, log_format],
        stdin=read_end,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal must not end it
    )
    os.close(read_end)
    for number in (1, 2):
        os.dup2(write_end, number)
    os.close(write_end)

    def release() -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        for number, original in originals.items():
            os.dup2(original, number)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child process still writes
            process.wait(RELAY_SECONDS)

    _ending.callback(release)


def exit_process(status: int) -> NoReturn:
    """End this process after writing all lines, without finalising the interpreter.

    Finalisation would unwind threads that return from native code meanwhile, and C++ aborts then.
    """
    _ending.close()
    os._exit(status)


class Lines:
    """Buffered log lines: warnings and worse are written at once, others within PAUSE.

    Each write releases the interpreter lock, and thousands of calls would wait as often to get it
    back. Lines that a killed process did not write are lost, as are those for a full disk or a
    closed pipe, which raise no error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()  # a finaliser that logs may run while it is held
        self._waiting: list[str] = []
        self._wake = threading.Event()

    def start(self) -> None:
        """Start the thread that writes."""
        threading.Thread(target=self._work, name="logs", daemon=True).start()

    def info(self, line: str) -> None:
        """Write a line soon."""
        with self._lock:
            self._waiting.append(redacted(line) + "\n")
        self._wake.set()

    def warning(self, line: str) -> None:
        """Write a line now, after the buffered ones."""
        self.info(line)
        self.flush()

    debug = info
    error = critical = warning

    def flush(self) -> None:
        """Write the buffered lines."""
        with self._lock, contextlib.suppress(OSError):
            waiting, self._waiting = self._waiting, []
            length = 0
            for line in waiting:
                if length and length + len(line.encode()) > ATOMIC:
                    self._stream.flush()
                    length = 0
                self._stream.write(line)
                length += len(line.encode())
            if waiting:
                self._stream.flush()

    def _work(self) -> None:
        while self._wake.wait():
            time.sleep(PAUSE)
            self._wake.clear()
            self.flush()


class _Handler(logging.Handler):
    """Handler for the logs of libraries."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler. Bytes are not shown: gRPC logs metadata that it cannot decode."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                f"<{len(value)} bytes>" if isinstance(value, bytes) else value
                for value in record.args
            )
        write = self._lines.info if record.levelno < logging.WARNING else self._lines.warning
        try:
            write(self.format(record))
        except Exception:  # such as arguments that do not fit the message
            self.handleError(record)


def adopt(library: str) -> None:
    """Log a library's warnings and errors here instead of by its own handlers."""
    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _json(fields: dict[str, Any], **_: Any) -> str:
    """Return fields as one JSON object, all of it printable."""
    try:
        text = msgspec.json.encode(fields, enc_hook=str).decode()
    except Exception:  # such as a lone surrogate; logging must not fail
        text = msgspec.json.encode({name: visible(str(fields[name])) for name in fields}).decode()
    if text.isascii() and "\x7f" not in text:  # JSON escapes the other control characters
        return text
    return "".join(map(_json_escape, text))


def _json_escape(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]


def _escape(
    _logger: object, _name: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make every value printable. A traceback keeps its line breaks, indented."""
    for name, value in fields.items():
        if name in {"exception", "stack"}:
            fields[name] = "\n".join(f"  {visible(line)}" for line in str(value).split("\n"))
        elif isinstance(value, str):
            fields[name] = visible(value)
        elif not (text := repr(value)).isprintable():
            fields[name] = visible(text)
    return fields


def _uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Log an uncaught exception; see sys.excepthook."""
    log.critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_elsewhere(args: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    """Log an uncaught exception of a thread or finaliser; see threading.excepthook."""
    if args.exc_type is not SystemExit:
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
