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
"""Seconds that a routine line may wait to be written."""

ATOMIC = 4096
"""Bytes that a pipe takes in one piece (PIPE_BUF): no other process's line comes between."""

RELAY_SECONDS = 1.0
"""Raising it lets a process that ends wait longer for its last native output to be written."""

_ending = contextlib.ExitStack()
"""What is done when this process ends."""


def configure(log_format: Format) -> None:
    """Send this process's logs, the libraries' too, to standard error as text or JSON lines.

    So go warnings, and exceptions that nothing catches. A crash writes the Python stacks of all
    threads, as does SIGUSR1, which ends nothing.
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
        structlog.processors.format_exc_info,  # ConsoleRenderer's own may print all locals
        *([structlog.processors.JSONRenderer(_json)] if log_format == "json" else text),
    ]
    # A buffer of its own: without one (PYTHONUNBUFFERED=1) a write may be cut by another's.
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    lines = Lines(stream)
    lines.start()
    _ending.callback(lines.flush)
    atexit.register(_ending.close)
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
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = sys.unraisablehook = _uncaught_elsewhere
    faulthandler.enable(stream)
    faulthandler.register(signal.SIGUSR1, file=2)


def capture(log_format: Format) -> None:
    """Turn what anything else writes to standard output and error into log lines.

    Native code does; child processes inherit it. After ``configure``, whose lines go straight to
    standard error, as does the traceback of a crash.
    """
    kept: dict[int, int] = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed by whoever started this process
            kept[number] = os.dup(number)
    read_end, write_end = os.pipe()
    relaying = subprocess.Popen(
        [sys.executable, "-I", "-S", relay.__file__, log_format],
        stdin=read_end,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt from the terminal is not for it
    )
    os.close(read_end)
    for number in (1, 2):
        os.dup2(write_end, number)
    os.close(write_end)

    def release() -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        for number, original in kept.items():
            os.dup2(original, number)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child process still writes
            relaying.wait(RELAY_SECONDS)

    _ending.callback(release)


def exit_process(status: int) -> NoReturn:
    """End this process when all its lines are written, without an end of the interpreter.

    That would unwind threads which come back from native code meanwhile, and C++ aborts then.
    """
    _ending.close()
    os._exit(status)


class Lines:
    """Writes lines: warnings and worse at once, others within PAUSE, many at a time.

    A write lets go of the interpreter, and who answers thousands of calls waits to get it back as
    many times. What a killed process did not write is lost, and so is what nobody reads any more:
    a full disk or a closed pipe behind standard error is no error of who logs.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()  # a finaliser that logs may run while it is held
        self._waiting: list[str] = []
        self._news = threading.Event()

    def start(self) -> None:
        """Start the thread that writes."""
        threading.Thread(target=self._work, name="logs", daemon=True).start()

    def info(self, line: str) -> None:
        """Write a line soon."""
        with self._lock:
            self._waiting.append(redacted(line) + "\n")
        self._news.set()

    def warning(self, line: str) -> None:
        """Write a line now, after those that wait."""
        self.info(line)
        self.flush()

    debug = info
    error = critical = warning

    def flush(self) -> None:
        """Write what waits."""
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
    """Let a library's warnings and errors go the way of all others, not by handlers of its own."""
    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _json(fields: dict[str, Any], **_: Any) -> str:
    """Return fields as one JSON object, all of it printable."""
    try:
        text = msgspec.json.encode(fields, enc_hook=str).decode()
    except Exception:  # such as a lone surrogate: a line that is logged must not fail
        text = msgspec.json.encode({name: visible(str(fields[name])) for name in fields}).decode()
    if text.isascii() and "\x7f" not in text:  # JSON itself escapes the other control characters
        return text
    return "".join(map(_json_escape, text))


def _json_escape(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]


def _escape(
    _logger: object, _name: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make every value printable; only the lines of a traceback stay lines, indented."""
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
    """Log an exception that nothing catches; see sys.excepthook."""
    log.critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_elsewhere(args: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    """Log one of a thread, or of a finaliser; see threading.excepthook and sys.unraisablehook."""
    if args.exc_type is not SystemExit:
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
