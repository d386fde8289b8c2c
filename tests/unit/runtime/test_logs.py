"""Log lines: complete, ordered, prompt, machine-readable and harmless to terminals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from topwork.runtime import logs
from topwork.runtime.logs import Lines
from topwork.runtime.relay import Format

PATIENCE = 60.0


class RecordingStream(io.StringIO):
    """A stream that signals each write."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = threading.Event()

    def flush(self) -> None:
        """Note it."""
        self.flushed.set()


def lines_of(
    program: str,
    log_format: Format = "json",
    *,
    unbuffered: bool = False,
    captures: bool = False,
    status: int = 0,
) -> list[str]:
    """Return the lines that a separate process writes, which ends with ``status``."""
    setup = (
        "import ctypes, logging, os, signal, threading, warnings, structlog\n"
        "from topwork.runtime import logs\n"
        f"logs.configure({log_format!r})\n"
        "log = structlog.get_logger('test')\n"
    )
    if captures:
        setup += f"logs.capture({log_format!r})\n"
    ended = subprocess.run(
        [sys.executable, "-c", setup + program],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
    )
    assert ended.returncode == status, ended.stderr
    assert not ended.stdout
    return ended.stderr.decode().split("\n")[:-1]


def facts_of(program: str, **how: Any) -> list[dict[str, Any]]:
    """Return the JSON lines of a separate process as fields."""
    return [json.loads(line) for line in lines_of(program, **how)]


@pytest.mark.slow
def test_json_line_has_event_and_fields() -> None:
    """A line is one JSON object: event, level, time and the fields, with any text."""
    (fact,) = facts_of("log.info('serving', model='Löwenzahn\\n🌼', revision=3, path=__import__)")
    assert fact.pop("timestamp").endswith("Z")
    assert "__import__" in fact.pop("path")  # what JSON does not know is text
    assert fact == {"event": "serving", "level": "info", "model": "Löwenzahn\n🌼", "revision": 3}


@pytest.mark.slow
def test_text_line_has_event_and_fields() -> None:
    """A text line has the level, the event and the fields, without colours unless on a terminal."""
    (line,) = lines_of("log.warning('worker died', exit_code=-9)", "text")
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


@pytest.mark.slow
def test_exception_is_one_json_line() -> None:
    """In JSON an exception with its traceback is a field of its line."""
    (fact,) = facts_of(BREAKS)
    assert (fact["event"], fact["level"], fact["method"]) == (
        "unexpected error",
        "error",
        "Classify",
    )
    assert fact["exception"].startswith("Traceback")
    assert "in secret_place" in fact["exception"]
    assert fact["exception"].endswith("ZeroDivisionError: division by zero")
    assert "exc_info" not in fact


@pytest.mark.slow
def test_text_traceback_shows_no_variables() -> None:
    """In text the traceback follows its line, without the values of variables."""
    first, *rest = lines_of(BREAKS, "text")
    assert "unexpected error" in first
    assert rest[0].strip().startswith("Traceback")
    assert rest[-1].strip() == "ZeroDivisionError: division by zero"
    assert "local = " not in "\n".join(rest)


HOSTILE = (
    "\x1b[31mred",
    "\x9b31mC1 control",
    "two lines\n2026-01-01T00:00:00Z [info     ] forged",
    "carriage return\rb",
    "line\u2028separator",
    "gnp.\u202eexe",
    "\u2066isolate\u2069",
    "lone surrogate \udce9.png",
)
PLACES = """
log.info(text)
log.info('refused', name=text)
log.info('refused', names=[text])
log.info('refused', what=type('T', (), {'__repr__': lambda _: text})())
log.error('refused', exc_info=ValueError(text))
logging.warning('refused %s', text)
logging.warning('refused', exc_info=ValueError(text))
"""


@pytest.mark.slow
def test_text_line_escapes_unprintable_characters() -> None:
    """A terminal sees only escapes, and nothing that looks like another line."""
    program = f"for text in {HOSTILE!a}:" + PLACES.replace("\n", "\n    ")
    lines = lines_of(program, "text")
    for line in lines:
        assert line.isprintable()
        assert line.startswith(("  ", "2")), "neither a line of its own nor part of a traceback"
    assert len([line for line in lines if line.startswith("2")]) == 7 * len(HOSTILE)


@pytest.mark.slow
def test_json_line_escapes_unprintable_characters() -> None:
    """JSON escapes them by its own means, so a reader gets the original text."""
    lines = lines_of(f"for text in {HOSTILE!a}: log.info('refused', name=text, names=[text])")
    for line, text in zip(lines, HOSTILE, strict=True):
        fact = json.loads(line)
        assert line.isprintable()
        if "\udce9" in text:  # JSON has no way to say it
            assert fact["name"] == r"lone surrogate \udce9.png"
        else:
            assert (fact["name"], fact["names"]) == (text, [text])


@pytest.mark.slow
def test_json_line_has_unknown_values_as_text() -> None:
    """Values that JSON does not know become text, and never raise an error."""
    values = "(float('nan'), 2**70, {1: object()}, b'\\xff', {3, 4}, {'a': '\\udce9'})"
    found = facts_of(f"for value in {values}: log.info('odd', value=value)")
    assert ["value" in fact for fact in found] == 6 * [True]


TOKEN = "topwork_0123456789ab_" + "s3cret-" * 6
LEAKS = f"""
logging.getLogger('grpc').error('Invalid encoding on %s', b'Bearer {TOKEN}\\xff')
logging.getLogger('grpc').error('Invalid encoding on %s', b's3cret-in-another-header')
logging.getLogger('grpc').error('metadata: authorization=Bearer {TOKEN}')
log.error('unexpected error', exc_info=ValueError(('authorization', 'Bearer {TOKEN}')))
log.info('call', error='what is {TOKEN}?')
os.write(2, b'E0000 call.cc:1] authorization: bearer {TOKEN}\\n')
"""


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_bearer_token_is_redacted(log_format: Format) -> None:
    """A token never appears in a line, even if a library logs it."""
    lines = lines_of(LEAKS, log_format, captures=True)
    assert len([line for line in lines if not line.startswith(" ")]) == 6
    assert "s3cret" not in "\n".join(lines)


UNCAUGHT = {
    "main thread": ("raise KeyError('gone')", 1),
    "thread": ("t = threading.Thread(target=lambda: {}['gone']); t.start(); t.join()", 0),
    "finaliser": ("type('T', (), {'__del__': lambda _: {}['gone']})()", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("program", "status"), UNCAUGHT.values(), ids=UNCAUGHT)
def test_uncaught_exception_is_one_line(program: str, status: int) -> None:
    """An uncaught exception of any origin is one line with its traceback."""
    (fact,) = facts_of(program, status=status)
    assert (fact["event"], fact["level"]) == ("uncaught exception", "critical")
    assert fact["exception"].endswith("KeyError: 'gone'")


@pytest.mark.slow
def test_python_warning_is_logged() -> None:
    """Warnings of Python are logged like others."""
    (fact,) = facts_of("warnings.warn('it gets old', UserWarning, stacklevel=1)")
    assert "UserWarning: it gets old" in fact["event"]


@pytest.mark.slow
def test_malformed_logging_call_raises_nothing() -> None:
    """A library's malformed logging call is reported, and the library continues."""
    found = facts_of("logging.warning('%d', 'x'); log.warning('goes on')", captures=True)
    assert "goes on" in [fact["event"] for fact in found]
    assert any("not all arguments" in text or "%d" in text for text in map(str, found))


NATIVE = """
os.write(2, b'ZIPDecode: \\x1b[31mbad\\xff\\n\\n')
os.write(1, b'to standard output\\n')
os.system('echo by a child >&2')
os.write(2, '{"event":"a worker\\u2019s own line"}\\n'.encode())
os.write(2, b'no end of line')
"""


@pytest.mark.slow
def test_native_output_is_json_lines() -> None:
    """Output of native code or a child process, on either stream, becomes JSON objects."""
    found = facts_of(NATIVE, captures=True)
    assert [fact.get("text", fact["event"]) for fact in found] == [
        r"ZIPDecode: \x1b[31mbad\xff",
        "to standard output",
        "by a child",
        "a worker\u2019s own line",
        "no end of line",
    ]
    assert {fact["event"] for fact in found if "text" in fact} == {"native output"}
    assert found[0]["timestamp"].endswith("Z")


@pytest.mark.slow
def test_native_output_in_text_is_escaped() -> None:
    """As text such lines stay unchanged, except for unprintable characters."""
    first, *_, last = lines_of(NATIVE, "text", captures=True)
    assert first == r"ZIPDecode: \x1b[31mbad\xff"
    assert last == "no end of line"


@pytest.mark.slow
def test_native_output_larger_than_the_pipe_does_not_block() -> None:
    """A call that holds the interpreter lock may write more than a pipe holds."""
    program = "ctypes.PyDLL(None).write(2, b'x' * 999 + b'\\n' + b'y' * 10**6, 10**6)"
    found = facts_of(program, captures=True)
    assert sum(len(fact["text"]) for fact in found) == 10**6 - 1


CRASH = """
def in_this_function():
    os.write(2, b"terminate called without an active exception\\n")
    {crash}

log.info("before")
log.warning("now")
in_this_function()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crash", "number"),
    [
        ("os.abort()", signal.SIGABRT),
        ("ctypes.string_at(0)", signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGBUS)", signal.SIGBUS),
    ],
)
def test_crash_leaves_last_output_and_stacks(crash: str, number: signal.Signals) -> None:
    """Output of native code before it aborts is relayed, with the Python stacks."""
    log = "\n".join(lines_of(CRASH.format(crash=crash), captures=True, status=-number))
    assert '"terminate called without an active exception"' in log
    assert "Fatal Python error" in log
    assert "in in_this_function" in log


@pytest.mark.slow
def test_sigusr1_prints_all_stacks() -> None:
    """A hanging process shows its stacks as log lines, and continues."""
    program = """
def stuck():
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

other = threading.Thread(target=stuck)
other.start()
other.join()
log.info("goes on")
"""
    texts = [fact.get("text", fact["event"]) for fact in facts_of(program, captures=True)]
    assert any("in stuck" in text for text in texts)
    assert any("in <module>" in text for text in texts)  # the main thread's
    assert "goes on" in texts


@pytest.mark.slow
def test_exit_does_not_wait_for_native_threads() -> None:
    """A process ends with its status and all its lines though a thread is in native code."""
    program = """
threading.Thread(target=ctypes.CDLL(None).sleep, args=[600]).start()
os.write(2, b"said natively\\n")
log.info("said last")
logs.exit_process(3)
"""
    found = [fact.get("text", fact["event"]) for fact in facts_of(program, captures=True, status=3)]
    assert sorted(found) == ["said last", "said natively"]


@pytest.mark.slow
def test_closed_standard_error_raises_nothing() -> None:
    """Logging continues after the reader of standard error has left."""
    program = """
gone, pipe = os.pipe()
os.dup2(pipe, 2)
os.close(gone)
logs.configure("json")
log.warning("nobody reads this")
log.warning("nor this")
os._exit(7)
"""
    assert lines_of(program, status=7) == []


def test_writes_are_atomic_for_a_pipe() -> None:
    """Lines are lines_of in pieces that a pipe never mixes with those of other processes."""
    pieces: list[str] = []

    class Pieces(io.StringIO):
        def flush(self) -> None:
            pieces.append(self.getvalue())
            self.truncate(0)
            self.seek(0)

    lines = Lines(Pieces())
    for number in range(100):
        lines.info(f"{number} " + "ä" * 200)
    lines.info("long " * 2000)
    lines.flush()
    assert "".join(pieces).splitlines()[:100] == [f"{n} " + "ä" * 200 for n in range(100)]
    assert max(len(piece.encode()) for piece in pieces[:-1]) <= logs.ATOMIC
    assert len(pieces) < 20


LIBRARY = """
logging.getLogger("grpc").warning("%s is odd", "this")
try:
    raise OSError("gone")
except OSError:
    logging.getLogger("some.package").exception("it failed")
logging.getLogger("some.package").debug("never mind")
"""


@pytest.mark.slow
def test_library_logs_are_json_lines() -> None:
    """Logs of libraries that use the standard module have the same form, with their exception."""
    odd, failed = facts_of(LIBRARY)
    assert (odd["event"], odd["level"]) == ("this is odd", "warning")
    assert odd["timestamp"].endswith("Z")
    assert (failed["event"], failed["level"]) == ("it failed", "error")
    assert failed["exception"].endswith("OSError: gone")


@pytest.mark.slow
def test_library_logs_are_text_lines() -> None:
    """The same as text."""
    odd, failed, *_, last = lines_of(LIBRARY, "text")
    assert "warning" in odd
    assert "this is odd" in odd
    assert "it failed" in failed
    assert last.strip() == "OSError: gone"


@pytest.mark.slow
def test_library_logs_are_in_order() -> None:
    """A library's warning comes after the earlier routine lines."""
    found = facts_of("log.info('first')\nlogging.warning('second')\nlog.info('third')")
    assert [fact["event"] for fact in found] == ["first", "second", "third"]


@pytest.mark.slow
def test_adopted_library_has_no_handlers() -> None:
    """Each line of DBOS comes once, and its routine lines not at all."""
    program = (
        "library = logging.getLogger('theirs')\n"
        "library.addHandler(logging.StreamHandler())\n"
        "library.propagate = False\n"
        "library.setLevel(logging.DEBUG)\n"
        "logs.adopt('theirs')\n"
        "library.info('chatter')\n"
        "library.error('an error')\n"
    )
    (fact,) = facts_of(program)
    assert (fact["event"], fact["level"]) == ("an error", "error")


@pytest.mark.slow
def test_debug_lines_are_not_written() -> None:
    """Debug lines are left out."""
    (fact,) = facts_of("log.debug('detail'); log.info('fact')")
    assert fact["event"] == "fact"


def test_routine_line_is_written_within_a_second() -> None:
    """A routine line is buffered for less than a second."""
    assert logs.PAUSE < 1
    stream = RecordingStream()
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
    """Lines of about the same time are one write."""
    stream = RecordingStream()
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
def test_warning_is_written_at_once(level: str) -> None:
    """A warning is lines_of when the call returns, after the buffered routine lines."""
    stream = io.StringIO()
    lines = Lines(stream)
    lines.info("first")
    lines.debug("second")
    assert not stream.getvalue()
    getattr(lines, level)("third")
    lines.info("fourth")
    assert stream.getvalue() == "first\nsecond\nthird\n"


@pytest.mark.slow
def test_killed_process_has_written_its_warnings() -> None:
    """A warning, and all lines before it, are lines_of even if the process is then killed."""
    (first, second) = facts_of(
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


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", [False, True])
def test_lines_of_threads_are_never_mixed(unbuffered: bool) -> None:
    """Lines of all threads and libraries come once, whole, and in order for each thread.

    PYTHONUNBUFFERED, which most container images set, removes the stream's own lock.
    """
    found: dict[int, list[float]] = {}
    for fact in facts_of(MANY, unbuffered=unbuffered):
        said = (fact["thread"], fact["count"]) if "thread" in fact else fact["event"].split()
        found.setdefault(int(said[0]), []).append(float(said[1]))
    assert sorted(found) == list(range(8))
    for counts in found.values():
        assert len(counts) == 300 + 6 + 6
        assert counts == sorted(counts)


@pytest.mark.slow
def test_buffered_lines_are_written_at_exit() -> None:
    """Buffered lines of a process that ends normally are not lost."""
    assert [fact["event"] for fact in facts_of("for n in range(9): log.info(str(n))")] == [
        *"012345678"
    ]
