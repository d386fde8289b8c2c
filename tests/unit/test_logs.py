"""Log lines: whole, in order, in time, and fit for machines."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from topwork import logs
from topwork.logs import Format, Lines

PATIENCE = 60.0


class Noted(io.StringIO):
    """A stream that tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = threading.Event()

    def flush(self) -> None:
        """Note it."""
        self.flushed.set()


def written(program: str, log_format: Format = "json", *, unbuffered: bool = False) -> list[str]:
    """Return the lines that a process of its own writes; it ends normally."""
    setup = (
        "import logging, threading, structlog\n"
        "from topwork import logs\n"
        f"logs.configure({log_format!r})\n"
        "log = structlog.get_logger('test')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", setup + program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
    )
    assert not ended.stdout
    return ended.stderr.splitlines()


def facts(program: str, *, unbuffered: bool = False) -> list[dict[str, Any]]:
    """Return the same as fields."""
    return [json.loads(line) for line in written(program, unbuffered=unbuffered)]


def test_json_lines_are_facts() -> None:
    """A line is one JSON object: event, level, time and the fields as they are, any text too."""
    (fact,) = facts("log.info('serving', model='Löwenzahn\\n🌼', revision=3, path=__import__)")
    assert fact.pop("timestamp").endswith("Z")
    assert "__import__" in fact.pop("path")  # what JSON does not know is text
    assert fact == {"event": "serving", "level": "info", "model": "Löwenzahn\n🌼", "revision": 3}


def test_text_lines_are_for_readers() -> None:
    """A text line has the level, the event and the fields; no colours where no terminal is."""
    (line,) = written("log.warning('worker died', exit_code=-9)", "text")
    assert "warning" in line
    assert line.partition("worker died")[2].strip() == "exit_code=-9"
    assert "\x1b" not in line


BREAKS = """
def secret_place(local):
    return 1 / 0

try:
    secret_place("a local value")
except ZeroDivisionError as error:
    log.error("unexpected error", method="Classify", exc_info=error)
"""


def test_an_exception_is_one_json_line() -> None:
    """In JSON an exception with its traceback is a field of its line."""
    (fact,) = facts(BREAKS)
    assert (fact["event"], fact["level"], fact["method"]) == (
        "unexpected error",
        "error",
        "Classify",
    )
    assert fact["exception"].startswith("Traceback")
    assert "in secret_place" in fact["exception"]
    assert fact["exception"].endswith("ZeroDivisionError: division by zero")
    assert "exc_info" not in fact


def test_an_exception_in_text_shows_no_locals() -> None:
    """In text the traceback follows its line, without the values of variables."""
    first, *rest = written(BREAKS, "text")
    assert "unexpected error" in first
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ZeroDivisionError: division by zero"
    assert "local = " not in "\n".join(rest)


LIBRARY = """
logging.getLogger("grpc").warning("%s is odd", "this")
try:
    raise OSError("gone")
except OSError:
    logging.getLogger("some.package").exception("it failed")
logging.getLogger("some.package").debug("never mind")
"""


def test_library_logs_come_too() -> None:
    """What libraries log with the standard module comes in the same form, with its exception."""
    odd, failed = facts(LIBRARY)
    assert (odd["event"], odd["level"]) == ("this is odd", "warning")
    assert odd["timestamp"].endswith("Z")
    assert (failed["event"], failed["level"]) == ("it failed", "error")
    assert failed["exception"].endswith("OSError: gone")


def test_library_logs_in_text() -> None:
    """The same as text."""
    odd, failed, *_, last = written(LIBRARY, "text")
    assert "warning" in odd
    assert "this is odd" in odd
    assert "it failed" in failed
    assert last == "OSError: gone"


def test_library_logs_keep_their_place() -> None:
    """What a library warns of comes after the routine lines before it."""
    found = facts("log.info('first')\nlogging.warning('second')\nlog.info('third')")
    assert [one["event"] for one in found] == ["first", "second", "third"]


def test_an_adopted_library_uses_no_handler_of_its_own() -> None:
    """What DBOS would write by handlers of its own comes once, and its chatter not at all."""
    program = (
        "library = logging.getLogger('theirs')\n"
        "library.addHandler(logging.StreamHandler())\n"
        "library.propagate = False\n"
        "library.setLevel(logging.DEBUG)\n"
        "logs.adopt('theirs')\n"
        "library.info('chatter')\n"
        "library.error('an error')\n"
    )
    (fact,) = facts(program)
    assert (fact["event"], fact["level"]) == ("an error", "error")


def test_what_is_below_info_is_not_written() -> None:
    """Debug lines are left out."""
    (fact,) = facts("log.debug('detail'); log.info('fact')")
    assert fact["event"] == "fact"


def test_a_routine_line_is_written_within_a_second() -> None:
    """A routine line waits for others, but not long, and comes by itself."""
    assert logs.PAUSE < 1
    stream = Noted()
    lines = Lines(stream)
    threading.Thread(target=lines._work, daemon=True).start()
    for line in ("first", "second"):
        stream.flushed.clear()
        before = time.monotonic()
        lines.info(line)
        assert stream.flushed.wait(PATIENCE)
        assert time.monotonic() - before < 1
    assert stream.getvalue() == "first\nsecond\n"


def test_routine_lines_are_written_together() -> None:
    """Lines that come at about the same time are one write."""
    stream = Noted()
    lines = Lines(stream)
    for number in range(100):
        lines.info(str(number))
    assert not stream.flushed.is_set()
    lines.flush()
    assert stream.getvalue().split() == [str(number) for number in range(100)]
    stream.flushed.clear()
    lines.flush()
    assert not stream.flushed.is_set()  # there was nothing


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
def test_a_warning_is_written_at_once(level: str) -> None:
    """Warnings and worse are there when the call returns, after the routine lines before them."""
    stream = io.StringIO()
    lines = Lines(stream)
    lines.info("first")
    lines.debug("second")
    assert not stream.getvalue()
    getattr(lines, level)("third")
    lines.info("fourth")
    assert stream.getvalue() == "first\nsecond\nthird\n"


def test_a_killed_process_has_written_its_warnings() -> None:
    """A warning, and all before it, are out even when the process ends without a goodbye."""
    (first, second) = facts(
        "log.info('a')\nlog.warning('b')\nlog.info('c')\nimport os\nos._exit(0)"
    )
    assert (first["event"], second["event"]) == ("a", "b")


MANY = """
def write(number):
    for count in range(300):
        log.info("fact", thread=number, count=count, filler="x" * (count * 7 % 900))
        if count % 50 == 0:
            log.warning("warning", thread=number, count=count + 0.5)
            logging.getLogger("library").warning("%d %.1f", number, count + 0.7)

threads = [threading.Thread(target=write, args=[number]) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("unbuffered", [False, True])
def test_lines_of_many_threads_are_never_mixed(unbuffered: bool) -> None:
    """Whoever writes, a library too, each line comes once and whole, a thread's in their order.

    PYTHONUNBUFFERED, which most container images set, takes the stream's own lock away.
    """
    found: dict[int, list[float]] = {}
    for fact in facts(MANY, unbuffered=unbuffered):
        said = (fact["thread"], fact["count"]) if "thread" in fact else fact["event"].split()
        found.setdefault(int(said[0]), []).append(float(said[1]))
    assert sorted(found) == list(range(8))
    for counts in found.values():
        assert len(counts) == 300 + 6 + 6
        assert counts == sorted(counts)


def test_the_rest_is_written_when_the_process_ends() -> None:
    """Lines that still wait when a process ends normally are not lost."""
    assert [one["event"] for one in facts("for n in range(9): log.info(str(n))")] == [*"012345678"]
