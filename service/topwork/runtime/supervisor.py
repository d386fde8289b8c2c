"""Supervisor of a worker process: starts it, and starts it again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Generic, TypeVarTuple

import structlog

log = structlog.get_logger(__name__)

Arguments = TypeVarTuple("Arguments")

GAVE_UP = os.EX_TEMPFAIL
"""Exit status of a worker that cannot work for now, such as on a full disk."""

NAME = "TOPWORK_PROCESS"
"""Variable in the environment of a worker process, which has its name."""

RESTART_SECONDS = 1.0
LONGEST_RESTART_SECONDS = 30.0
"""Pause before a worker that ended is started again.

The first after a worker that was killed; twice as long each time after one that exits with GAVE_UP,
up to the second.
"""


CLOSING_SECONDS = 5.0
"""Raising it gives a worker whose pipe was closed longer before it is killed."""


class Supervisor(Generic[*Arguments]):
    """Supervisor of one worker process, which runs ``target(pipe, *arguments)``.

    It is spawned, never forked: grpc and ONNX Runtime hold threads that a fork would not copy. The
    pipe closes when this process ends, however it ends; ``target`` must then return. The booleans
    that it sends through the pipe say whether it works; a subclass may use the pipe otherwise.
    """

    def __init__(
        self,
        name: str,
        target: Callable[[Connection, *Arguments], None],
        *arguments: *Arguments,
    ) -> None:
        self._name = name
        self._target = target
        self._arguments = arguments
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._works = False
        self._pause = RESTART_SECONDS
        self._task: asyncio.Task[None] | None = None
        self.closing_seconds = CLOSING_SECONDS

    def start(self) -> None:
        """Start the worker."""
        self._spawn()
        self._task = asyncio.create_task(self._supervise(), name="supervisor")

    async def aclose(self) -> None:
        """End the worker."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.join, self.closing_seconds)
            self._process.kill()

    def works(self) -> bool:
        """Return the last boolean that the running worker sent; False before the first.

        Must be called from time to time, since it is what empties the pipe.
        """
        if self._process is None or self._pipe is None or not self._process.is_alive():
            return False
        with contextlib.suppress(EOFError, OSError):  # it dies just now
            while self._pipe.poll():
                self._works = self._pipe.recv()
        return self._works

    @property
    def pid(self) -> int:
        """Process id of the worker; 0 before the first."""
        return 0 if self._process is None else self._process.pid or 0

    def kill(self) -> None:
        """Kill the worker; another one is started."""
        if self._process is not None:
            self._process.kill()

    async def _begin(self, pipe: Connection) -> None:
        try:
            await self._started(pipe)
        except Exception as error:
            log.error("worker cannot be started", process=self._name, error=repr(error))
            self.kill()

    async def _started(self, pipe: Connection) -> None:
        """Take the pipe of a worker that has been started; cancelled when the worker ends."""

    def _ended(self, exit_code: int | None) -> float:
        """Return the pause before the next worker is started."""
        doubles = exit_code == GAVE_UP
        self._pause = min(2 * self._pause, LONGEST_RESTART_SECONDS) if doubles else RESTART_SECONDS
        return self._pause

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        child_end, self._pipe = context.Pipe()
        self._works = False
        # No daemon of multiprocessing, which would kill it at exit: this one ends with its pipe.
        process = context.Process(
            target=self._target, args=(child_end, *self._arguments), name=self._name
        )
        # Signals to the process group, such as Ctrl-C, are for this process. They are blocked when
        # the worker starts, else they end its imports; to start the tracker would unblock them.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        os.environ[NAME] = self._name
        try:
            process.start()
        finally:
            del os.environ[NAME]
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._process = process
        child_end.close()

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None, "start() spawned it"
            assert self._pipe is not None, "start() made it"
            started = asyncio.create_task(self._begin(self._pipe), name="begin")
            died = asyncio.Event()
            loop.add_reader(self._process.sentinel, died.set)
            try:
                await died.wait()
            finally:
                loop.remove_reader(self._process.sentinel)
                started.cancel()
            await asyncio.to_thread(self._process.join)  # its pipe ends a moment before it does
            await asyncio.gather(started, return_exceptions=True)
            pause = self._ended(self._process.exitcode)
            log.error(
                "worker died",
                process=self._name,
                exit_code=self._process.exitcode,
                pause=pause,
            )
            await asyncio.sleep(pause)
            await self._respawn()

    async def _respawn(self) -> None:
        while True:
            try:
                self._spawn()
            except OSError as error:  # no memory or no processes left, for now
                log.error("worker cannot be started", process=self._name, error=str(error))
                await asyncio.sleep(RESTART_SECONDS)
            else:
                return
