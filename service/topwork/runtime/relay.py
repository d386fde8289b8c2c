"""Relay process: turns raw lines of a process's standard error into log lines.

Native libraries (libtiff, gRPC's core, ONNX Runtime, the C library) write directly to the file
descriptors 1 and 2. ``topwork.runtime.logs`` points both at a pipe to this script. A separate
process survives a crash, whose last lines it relays, and does not need the interpreter lock, which
a native call may hold while it fills the pipe.

Runs without ``site`` and without the package, so only the standard library is imported.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import BinaryIO, Literal

Format = Literal["text", "json"]
"""Format of the log."""

EVENT = "native output"
"""The ``event`` of a raw line's JSON object; the line is its ``text``."""

LONGEST_LINE = 2**16
"""Raising it relays longer raw lines whole, for as much memory (bytes)."""

_SECRET = re.compile(r"([Bb]earer\s+|topwork_[0-9a-f]{12}_)[\w.~+/=-]{8,}")


def visible(text: str) -> str:
    """Return ``text`` with unprintable characters escaped as in Python.

    These are control characters, line separators, bidirectional controls and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def redacted(line: str) -> str:
    """Return ``line`` without the secret part of bearer tokens."""
    if "earer" in line or "topwork_" in line:  # quicker than the pattern
        return _SECRET.sub(r"\1***", line)
    return line


def rendered(lines: Iterator[str], *, as_json: bool) -> Iterator[str]:
    """Yield raw lines as log lines; JSON objects stay unchanged."""
    for line in lines:
        text = redacted(visible(line))
        if not as_json or _is_object(text):
            yield text
        elif text.strip():
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            fact = {"text": text, "event": EVENT, "level": "warning", "timestamp": now}
            yield json.dumps(fact)


def _is_object(text: str) -> bool:
    try:
        return text.startswith("{") and isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _lines(stream: BinaryIO) -> Iterator[str]:
    while line := stream.readline(LONGEST_LINE):
        yield line.decode("utf-8", "backslashreplace").rstrip("\r\n")


def main() -> None:
    """Relay standard input to standard error until all writers have ended."""
    # A signal to the server's process group must not end this process before the server.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for line in rendered(_lines(sys.stdin.buffer), as_json=sys.argv[1] == "json"):
        os.write(2, f"{line}\n".encode())


if __name__ == "__main__":
    main()
