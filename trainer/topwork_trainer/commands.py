"""Runs the two commands as a user would: as processes. For the demo, benchmarks and tests."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topwork.errors import Unavailable

START_SECONDS = 60.0
"""How long the server may take to get ready."""

Row = dict[str, Any]
"""One JSON line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A running server."""

    address: str
    """HOST:PORT"""
    process: subprocess.Popen[bytes]


def run(package: str, *arguments: object, check: bool = True) -> list[Row]:
    """Run ``topwork`` or ``topwork-train``, by the name of its package; return its JSON lines.

    Raises Unavailable if ``check`` and the exit status is not 0.
    """
    command = [sys.executable, "-m", f"{package}.cli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if check and done.returncode:
        raise Unavailable(f"exit status {done.returncode} of {shlex.join(command)}")
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def serving(repository: Path, log: Path, *options: object) -> Iterator[RunningServer]:
    """Run ``topwork serve`` on a free port, its log in the file ``log``, for the block's time.

    The block starts when it is ready to classify and to learn.

    Raises Unavailable if it does not get ready.
    """
    command = [sys.executable, "-m", "topwork.cli", "serve", "--repository", str(repository)]
    command += ["--address", "127.0.0.1:0", "--log-format", "json", *map(str, options)]
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            yield RunningServer(address=f"127.0.0.1:{_port(process, log)}", process=process)
        finally:
            process.terminate()


def wait_for_model(address: str, model: str) -> None:
    """Return when the server serves ``model``, which it finds by itself. Raises Unavailable."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if any(
            row["model"] == model
            for row in run("topwork", "models", "--address", address, "--json")
        ):
            return
    raise Unavailable(f"the server did not take up model {model!r}")


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
        events = {fields["event"]: fields for fields in map(json.loads, lines)}
        if "ready" in events and "worker ready" in events:
            return int(events["ready"]["port"])
        time.sleep(0.05)
    raise Unavailable(f"the server did not get ready; its log:\n{log.read_text()}")
