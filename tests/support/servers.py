"""Servers in processes of their own, as users run them, and what their logs say.

``python -m support.servers JSON`` serves with settings that the command line does not offer: other
limits, no worker, or a worker that dies where a test wants it to.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pkgutil
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

from topwork import CallFailed
from topwork.client import calls
from topwork.config import ServeConfig
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.runtime import logs, process

if TYPE_CHECKING:
    from support.certificates import Pem

T = TypeVar("T")
Teach = Callable[..., operations_pb2.Operation]
"""(model, label, (name, image) pairs, *, request_id) -> the finished operation."""
Command = Callable[..., tuple[int, str, str]]
"""(command, argument, ..., *, address) -> exit status, output and errors."""

TESTS = Path(__file__).parents[1]
DEATHS = "TOPWORK_TEST_DEATHS"
PATIENCE = 60.0
"""Seconds after which what a test waits for will not come; when all is well it came long ago."""


class Running:
    """A server process and its log, read as it is written."""

    def __init__(
        self, command: list[str], repository: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.repository = repository
        self._news = threading.Condition()
        self.facts: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._ended = False
        path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **(environment or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def address(self) -> str:
        """HOST:PORT, once the server is ready."""
        return f"127.0.0.1:{self.fact('ready')['port']}"

    def fact(self, event: str, *, count: int = 1) -> dict[str, Any]:
        """Return the ``count``-th log line about ``event``, waiting for it."""

        def found() -> list[dict[str, Any]]:
            return [fact for fact in self.facts if fact.get("event") == event]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= count or self._ended, PATIENCE)
            assert len(found()) >= count, f"no {event!r} in the log:\n{self.log}"
            return found()[count - 1]

    def gone(self) -> bool:
        """Wait until every process of this server has ended; return whether they have.

        All of them hold its standard error: it ends with the last of them.
        """
        with self._news:
            return self._news.wait_for(lambda: self._ended, PATIENCE)

    @property
    def log(self) -> str:
        """What the server and its worker wrote so far."""
        return "".join(self._text)

    def worker(self) -> int:
        """Return the process id of the worker."""
        return eventually(lambda: next(iter(workers_of(self.process.pid)), None))

    def stop(self) -> int:
        """End the server as an operator does, and return its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """End the server's own process as a power cut does; its worker must notice by itself."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """End all that is left of it."""
        left = [self.process.pid, *workers_of(self.process.pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None, "it is a pipe"
        for line in self.process.stderr:
            with self._news:
                self._text.append(line)
                with contextlib.suppress(json.JSONDecodeError):
                    self.facts.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@contextlib.contextmanager
def running(
    repository: Path,
    *,
    limits: dict[str, int] | None = None,
    worker: bool = True,
    deaths: Sequence[str] = (),
    **settings: Any,
) -> Iterator[Running]:
    """Run a server on a free port of the loopback; yield it when it is ready, worker and all.

    Without a ``worker`` operations are accepted and wait. The worker dies, once each, right after
    its first call of each of ``deaths``, such as ``topwork.bundle.store:Repository.publish``, or
    ``topwork.changes.worker:DBOS.set_event=result``: called with this. ``settings`` are those of
    ServeConfig.
    """
    given = {
        "repository": str(repository),
        "other_limits": limits or {},
        "worker": worker,
        **settings,
    }
    started = Running(
        [sys.executable, "-m", "support.servers", json.dumps(given)],
        repository,
        {DEATHS: json.dumps([str(repository), *deaths])},
    )
    try:
        started.fact("ready")
        if worker:
            started.fact("worker ready")
        yield started
    finally:
        started.close()


def command(repository: Path, address: str = "127.0.0.1:0") -> list[str]:
    """Return the command line of a server."""
    options = ["--repository", str(repository), "--address", address, "--provider", "cpu"]
    return [sys.executable, "-m", "topwork.cli", "serve", *options, "--log-format", "json"]


def tls(server: Pem, client_ca: Path | None = None) -> dict[str, Any]:
    """Return the settings of TLS."""
    files = {"tls_cert": str(server.cert), "tls_key": str(server.key)}
    return files if client_ca is None else {**files, "client_ca": str(client_ca)}


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the workers whose parent is ``pid``."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
    return found


def eventually(look: Callable[[], T | None]) -> T:
    """Return what ``look`` returns as soon as it is true; fail when it is not in time."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found


def failure(call: Callable[[], object]) -> CallFailed:
    """Return the error that ``call``, of the client or of a stub, ends with; there must be one."""
    try:
        call()
    except CallFailed as error:
        return error
    except grpc.RpcError as error:
        return calls.failed(error)
    raise AssertionError("the call went well")


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
    """Settings with limits that no option sets."""

    other_limits: dict[str, int]

    @property
    def limits(self) -> ServerLimits:
        """See ServeConfig."""
        return replace(DEFAULT_LIMITS, **self.other_limits)


def main() -> None:
    """Serve as the JSON in argv says."""
    given = json.loads(sys.argv[1])
    for name in given.keys() & {"repository", "access", "tls_cert", "tls_key", "client_ca"}:
        given[name] = Path(given[name])
    config = _Config(
        **{
            "address": "127.0.0.1:0",
            "provider": "cpu",
            "cores": 2,
            "log_format": "json",
            **given,
        }
    )
    process.configure()
    from topwork.rpc import server  # not at the top: workers, which import this module, need none

    logs.configure(config.log_format)
    logs.capture(config.log_format)
    server.run(config)


def arrange_deaths() -> None:
    """Let this process die, once a repository, right after the calls that a test named."""
    repository, *deaths = json.loads(os.environ.get(DEATHS, '[""]'))
    for number, death in enumerate(deaths):
        where, _, argument = death.partition("=")
        mark = Path(repository) / f"death-{number}"
        wrap(where, functools.partial(_dying, argument=argument, mark=mark))


def wrap(where: str, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function or method, such as ``module:class.method``, by what wraps it."""
    module, _, path = where.partition(":")
    owner_path, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(f"{module}:{owner_path}" if owner_path else module)
    setattr(owner, name, wrapped(getattr(owner, name)))


def note_calls(where: str, notes: str) -> None:
    """Let this process write a line with its id into the file ``notes`` at each call."""

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def called(*args: Any, **kwargs: Any) -> Any:
            with Path(notes).open("a") as file:
                file.write(f"{os.getpid()}\n")
            return call(*args, **kwargs)

        return called

    wrap(where, noting)


def _dying(call: Callable[..., Any], argument: str, mark: Path) -> Callable[..., Any]:
    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if not mark.exists() and (not argument or argument in args):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in a worker: multiprocessing imports its parent's main module
    arrange_deaths()
