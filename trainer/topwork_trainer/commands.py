"""Runs ``topwork`` and ``topwork-train`` as subprocesses, for the demo, benchmarks and tests."""

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
"""Raising it waits longer for a server to become ready."""

JsonRow = dict[str, Any]
"""A line of JSON that a command printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """Address and process of a running server."""

    address: str
    """HOST:PORT"""
    process: subprocess.Popen[bytes]


def run(package: str, *arguments: object, check: bool = True) -> list[JsonRow]:
    """Run the command of ``package`` (topwork or topwork_trainer) and return its JSON lines.

    Raises Unavailable if ``check`` and the exit status is not 0.
    """
    command = [sys.executable, "-m", f"{package}.cli", *map(str, arguments)]
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if check and completed.returncode:
        raise Unavailable(f"exit status {completed.returncode} of {shlex.join(command)}")
    return [json.loads(line) for line in completed.stdout.splitlines()]


@contextmanager
def serving(repository: Path, log: Path, *options: object) -> Iterator[RunningServer]:
    """Run ``topwork serve`` on a free port during the block, and write its log to ``log``.

    The block starts when server and worker are ready. Raises Unavailable if they do not get ready.
    """
    command = [sys.executable, "-m", "topwork.cli", "serve", "--repository", str(repository)]
    command += ["--address", "127.0.0.1:0", "--log-format", "json", *map(str, options)]
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            yield RunningServer(address=f"127.0.0.1:{_port(process, log)}", process=process)
        finally:
            process.terminate()


def wait_for_model(address: str, model: str) -> None:
    """Wait until the server has noticed and serves ``model``. Raises Unavailable after a time."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if any(
            row["model"] == model
            for row in run("topwork", "models", "--address", address, "--json")
        ):
            return
    raise Unavailable(f"the server does not serve model {model!r} after {START_SECONDS:g} s")


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
        events = {fields["event"]: fields for fields in map(json.loads, lines)}
        if "ready" in events and "worker ready" in events:
            return int(events["ready"]["port"])
        time.sleep(0.05)
    raise Unavailable(f"the server did not become ready; its log:\n{log.read_text()}")
