"""Test servers that are forked from a process with all their modules, and so start in less time.

Imports take two thirds of the start of a server or a worker, of which the tests start hundreds. The
process that is forked has no threads. Tests of starting itself use real commands.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver, reduction
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import IO, Any

from support import deaths

MODULES = [
    "topwork.rpc.server",
    "topwork.changes.worker",
    "topwork.gateway.process",
    "topwork.serving.encoders.process_main",
]


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Fork the children that this process starts with ``multiprocessing``."""
    forkserver.set_forkserver_preload(MODULES)
    with unittest.mock.patch.object(multiprocessing, "get_context", return_value=_Context()):
        yield


class ForkedProcess:
    """``python -m MODULE ARGUMENT...`` in a forked process; what tests use of ``Popen``."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        _python, _m, module, *arguments = command
        read_end, write_end = os.pipe()
        forkserver.set_forkserver_preload(MODULES)
        self._process = ForkServerProcess(
            target=_main, args=(_Outputs(1, write_end), dict(environment), module, arguments)
        )
        self._process.start()
        os.close(write_end)
        self.stderr: IO[str] = os.fdopen(read_end, encoding="utf-8")  # its user closes it

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None of a process that runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status, or None of a process that runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Outputs:
    """Files that become the standard output and error of the process that unpickles them."""

    def __init__(self, *files: int) -> None:
        self._files = files

    def __reduce__(self) -> Any:
        return _adopt, tuple(map(reduction.DupFd, self._files))


def _adopt(*files: Any) -> None:
    for number, file in enumerate(files, 1):
        given = file.detach()
        os.dup2(given, number)
        os.close(given)


class _Child(ForkServerProcess):
    """A child of a forked process, which has its environment and outputs as a spawned one has."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], name: str) -> None:
        super().__init__(
            target=_child, args=(_Outputs(1, 2), dict(os.environ), target, *args), name=name
        )


class _Context(ForkServerContext):
    Process = _Child


def _main(_: None, environment: dict[str, str], module: str, arguments: list[str]) -> None:
    _begin(environment)
    sys.argv[1:] = arguments
    importlib.import_module(module).main()


def _child(
    _: None, environment: dict[str, str], target: Callable[..., None], *arguments: Any
) -> None:
    _begin(environment)
    deaths.arrange()
    target(*arguments)


def _begin(environment: dict[str, str]) -> None:
    """Set the environment, and let the fork server that started this process start its children."""
    os.environ.clear()
    os.environ.update(environment)
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]  # of this process
    multiprocessing.get_context = lambda _method: _Context()  # type: ignore[assignment]  # of the forked process
