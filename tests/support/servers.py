"""Servers in separate processes, as users run them, and their logs.

``python -m support.servers JSON`` serves with settings that the command line does not offer: other
limits, no worker, or a worker that dies at given calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.longrunning import operations_pb2
from google.rpc import error_details_pb2

from support.deaths import DEATHS, arrange
from support.forks import ForkedProcess
from topwork import CallFailed
from topwork.client import calls
from topwork.config import ServeConfig
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.runtime import logs, process
from topwork.storage.location import Location, to_location

if TYPE_CHECKING:
    from support.certificates import Pem

T = TypeVar("T")
AddClass = Callable[..., operations_pb2.Operation]
"""(model, label, (name, image) pairs, *, request_id) -> the finished operation."""
Command = Callable[..., tuple[int, str, str]]
"""(command, argument, ..., *, address) -> exit status, output and errors."""

TESTS = Path(__file__).parents[1]
PATHS = {
    "repository",
    "cache_directory",
    "access",
    "tls_cert",
    "tls_key",
    "client_ca",
    "trusted_keys",
    "signing_key",
    "gateway_key",
}
"""Settings that are paths."""
WORKER = b"TOPWORK_PROCESS=topwork-worker"
GATEWAY = b"TOPWORK_PROCESS=topwork-gateway"
ENCODER = b"TOPWORK_PROCESS=topwork-encoder-"
"""In the environments of these processes only."""

TIMEOUT = 240.0
"""Timeout of all waits in seconds, much longer than a working server needs."""


class Running:
    """A server process and its log, read as it is written."""

    def __init__(
        self,
        command: list[str],
        repository: Path,
        environment: Mapping[str, str] | None = None,
        *,
        forked: bool = False,
    ) -> None:
        self.repository = repository
        self._changed = threading.Condition()
        self.log_entries: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._ended = False
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        complete = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **(environment or {})}
        self.process = (
            ForkedProcess(command, complete)
            if forked
            else subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=complete,
            )
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def address(self) -> str:
        """HOST:PORT; waits until the server is ready."""
        return f"127.0.0.1:{self.log_entry('ready')['port']}"

    @property
    def http(self) -> str:
        """HOST:PORT of the gateway."""
        return f"127.0.0.1:{self.log_entry('http')['port']}"

    def log_entry(self, event: str, *, count: int = 1) -> dict[str, Any]:
        """Wait for the ``count``-th log entry of ``event`` and return it."""

        def entries() -> list[dict[str, Any]]:
            return [entry for entry in self.log_entries if entry.get("event") == event]

        with self._changed:
            self._changed.wait_for(lambda: len(entries()) >= count or self._ended, TIMEOUT)
            assert len(entries()) >= count, f"no {event!r} in the log:\n{self.log}"
            return entries()[count - 1]

    def wait_ended(self) -> bool:
        """Wait until all processes of this server have ended; return False after a timeout.

        All of them inherit its standard error, which closes with the last of them.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, TIMEOUT)

    @property
    def log(self) -> str:
        """Output of the server and its worker so far."""
        return "".join(self._text)

    def worker(self) -> int:
        """Return the process id of the worker."""
        return eventually(lambda: next(iter(workers_of(self.process.pid)), None))

    def gateway(self) -> int:
        """Return the process id of the gateway."""
        return eventually(lambda: next(iter(_children(self.process.pid, GATEWAY)), None))

    def stop(self) -> int:
        """Send SIGTERM to the server and return its exit status."""
        self.process.terminate()
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """Send SIGKILL to the server's main process only; its worker must notice by itself."""
        self.process.kill()
        self.process.wait(TIMEOUT)

    def close(self) -> None:
        """Kill all remaining processes."""
        left = [self.process.pid, *workers_of(self.process.pid)]
        left += _children(self.process.pid, GATEWAY)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None, "it is a pipe"
        for line in self.process.stderr:
            with self._changed:
                self._text.append(line)
                with contextlib.suppress(json.JSONDecodeError):
                    self.log_entries.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextlib.contextmanager
def running(
    repository: Location,
    *,
    limits: dict[str, int] | None = None,
    worker: bool = True,
    forked: bool = True,
    deaths: Sequence[str] = (),
    **settings: Any,
) -> Iterator[Running]:
    """Run a server on a free port of the loopback; yield it when it and its worker are ready.

    It is ``forked``, unless the test needs the ids of its children. Without a ``worker`` operations
    are accepted and wait. The worker dies once right after its first call of each of ``deaths``,
    such as ``topwork.bundle.store:Repository.publish``, or
    ``topwork.changes.worker:DBOS.set_event=result`` for a call with the argument "result".
    ``settings`` are fields of ServeConfig.
    """
    config = {
        "repository": str(repository),
        "other_limits": limits or {},
        "worker": worker,
        **settings,
    }
    started = Running(
        [sys.executable, "-m", "support.servers", json.dumps(config)],
        Path(repository),  # of no use if it is the URL of a bucket
        {DEATHS: json.dumps([str(repository), *deaths])},
        forked=forked,
    )
    try:
        started.log_entry("ready")
        if worker:
            started.log_entry("worker ready")
        yield started
    finally:
        started.close()


def command(repository: Path, address: str = "127.0.0.1:0") -> list[str]:
    """Return the command line of a server."""
    options = ["--repository", str(repository), "--address", address, "--provider", "cpu"]
    return [sys.executable, "-m", "topwork.cli", "serve", *options, "--log-format", "json"]


def tls(server: Pem, client_ca: Path | None = None) -> dict[str, Any]:
    """Return the TLS settings of ServeConfig."""
    files = {"tls_cert": str(server.cert), "tls_key": str(server.key)}
    return files if client_ca is None else {**files, "client_ca": str(client_ca)}


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the workers whose parent is ``pid``."""
    return _children(pid, WORKER)


def encoders_of(pid: int) -> list[int]:
    """Return the process ids of the encoder processes whose parent is ``pid``."""
    return _children(pid, ENCODER)


def _children(pid: int, name: bytes) -> list[int]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and name in (directory / "environ").read_bytes():
                found.append(int(directory.name))
    return found


def eventually(look: Callable[[], T | None]) -> T:
    """Call ``look`` until its result is true and return it; fail after a timeout."""
    deadline = time.monotonic() + TIMEOUT
    while not (value := look()):
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)
    return value


def failure(call: Callable[[], object]) -> CallFailed:
    """Return the error that ``call``, of the client or of a stub, must raise."""
    try:
        call()
    except CallFailed as error:
        return error
    except grpc.RpcError as error:
        return calls.failed(error)
    raise AssertionError("the call succeeded")


def fields(error: CallFailed) -> list[str]:
    """Return the fields that an error's BadRequest names."""
    bad = error_details_pb2.BadRequest()
    return [
        violation.field
        for detail in error.status.details
        if detail.Unpack(bad)
        for violation in bad.field_violations
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config(ServeConfig):
    """Settings with limits that have no command-line option."""

    other_limits: dict[str, int]

    @property
    def limits(self) -> ServerLimits:
        """See ServeConfig."""
        return replace(DEFAULT_LIMITS, **self.other_limits)


def main() -> None:
    """Serve with the settings of the JSON in argv."""
    settings = json.loads(sys.argv[1])
    for name in settings.keys() & PATHS:
        settings[name] = to_location(settings[name])
    config = _Config(
        **{
            "address": "127.0.0.1:0",
            "provider": "cpu",
            "cores": 1,
            "log_format": "json",
            "worker_priority": "normal",  # the tests take all cores
            **settings,
        }
    )
    process.configure()
    from topwork.rpc import server  # not at the top: workers, which import this module, need none

    logs.configure(config.log_format)
    logs.capture(config.log_format)
    server.run(config)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in a worker: multiprocessing imports its parent's main module
    arrange()
