"""Keeps one worker process alive beside the server."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import structlog

from topwork.changes import worker
from topwork.changes.executors import check_executor
from topwork.config import WorkerConfig

log = structlog.get_logger(__name__)

RESTART_SECONDS = 1.0
LONGEST_RESTART_SECONDS = 30.0
"""Pause before a worker that ended is started again.

The first after a worker that was killed; twice as long each time after one that gave up by itself,
as it does while the disk is full: the second is the longest.
"""


class Supervisor:
    """Starts a worker, and another one whenever it dies.

    Spawned, never forked: grpc and ONNX Runtime hold threads that a fork would not copy. The pipe
    between the two ends with this process, however that ends, and the worker with the pipe. It
    brings what the worker says of itself.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._said = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the first worker. Operations wait in the queue until it is ready.

        Raises InvalidInput if a worker cannot have its name.
        """
        check_executor(self._config.executor)
        self._spawn()
        self._task = asyncio.create_task(self._supervise(), name="supervisor")

    async def aclose(self) -> None:
        """End the worker; an operation that it was running goes on when the next one starts."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.join, 5.0)
            self._process.kill()

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._process.pid if self._process is not None else None

    def works(self) -> bool:
        """Return whether a worker runs that said that changes are made; look at least at times."""
        if self._process is None or self._pipe is None or not self._process.is_alive():
            return False
        with contextlib.suppress(EOFError, OSError):  # it dies just now
            while self._pipe.poll():
                self._said = self._pipe.recv()
        return self._said

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        child_end, self._pipe = context.Pipe()
        self._said = False
        # Not a daemon of multiprocessing's: those are killed at exit, this one ends by its pipe.
        self._process = context.Process(
            target=worker.run, args=(self._config, child_end), name="topwork-worker"
        )
        # Signals to the process group, such as Ctrl-C, are for the server. The worker is born with
        # them blocked: else they end its imports. Starting the tracker would unblock them here.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child_end.close()

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause = RESTART_SECONDS
        while True:
            assert self._process is not None, "start() spawned it"
            died = asyncio.Event()
            loop.add_reader(self._process.sentinel, died.set)
            try:
                await died.wait()
            finally:
                loop.remove_reader(self._process.sentinel)
            await asyncio.to_thread(self._process.join)  # its pipe ends a moment before it does
            gave_up = self._process.exitcode == worker.GAVE_UP
            pause = min(2 * pause, LONGEST_RESTART_SECONDS) if gave_up else RESTART_SECONDS
            log.error("worker died", exit_code=self._process.exitcode, pause=pause)
            await asyncio.sleep(pause)
            await self._respawn()

    async def _respawn(self) -> None:
        while True:
            try:
                self._spawn()
            except OSError as error:  # no memory or no processes left, for now
                log.error("worker cannot be started", error=str(error))
                await asyncio.sleep(RESTART_SECONDS)
            else:
                return
