"""Supervisor that restarts the server whenever it ends."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from support.servers import TIMEOUT, Running

from soak import steps
from soak.ledger import Ledger
from soak.place import Place
from topwork import CallFailed, Client
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository

T = TypeVar("T")

RETRYABLE = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
"""Codes of calls that may be retried."""

RETRY_SECONDS = 0.05
MOST_SECONDS = 600.0
"""Time limit of retries, long because servers die all the time."""


class Supervisor:
    """Runs one server with its worker after another on one repository."""

    def __init__(
        self, place: Place, repository: Repository, armed: Path, ledger: Ledger, seed: int
    ) -> None:
        self.place = place
        self.repository = repository
        self.servers: list[Running] = []
        self.cleanup_lock = threading.Lock()
        """Held while anything but server and worker deletes files."""
        self._armed = armed
        self._ledger = ledger
        self._rng = random.Random(f"{seed} supervisor")
        self._changed = threading.Condition()
        self._client: Client | None = None
        self._clients: list[Client] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._supervise, name="supervisor")

    def start(self) -> None:
        """Start the first server."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the server by SIGTERM without a restart, and check all exit codes."""
        with self._changed:
            self._stopping = True
        server = self.server()
        if server.stop() != 0:
            self._ledger.fail(f"SIGTERM ended the server with {server.process.returncode}")
        self._thread.join()
        for client in self._clients:
            client.close()
        for server in self.servers:
            if not server.wait_ended():
                self._ledger.fail("a process outlived its server")
            codes = {
                entry["exit_code"]
                for entry in server.log_entries
                if entry["event"] == "worker died"
            }
            for code in {server.process.returncode, *codes} - {0, -signal.SIGKILL}:
                self._ledger.fail(f"a process ended with {code}")
            server.close()

    def server(self) -> Running:
        """Wait for a ready server and return it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._client is not None, TIMEOUT), "not ready"
            return self.servers[-1]

    def client(self) -> Client:
        """Wait for a ready server and return its client."""
        with self._changed:
            self._changed.wait_for(lambda: self._client is not None, TIMEOUT)
            assert self._client is not None, f"no server is ready:\n{self.servers[-1].log}"
            return self._client

    def retry(self, call: Callable[[Client], T]) -> T:
        """Return the result of ``call``, with retries while servers die. Raises CallFailed."""
        end = time.monotonic() + MOST_SECONDS
        while True:
            try:
                return call(self.client())
            except CallFailed as error:
                if error.code not in RETRYABLE or time.monotonic() > end:
                    raise
                self._ledger.count("retried calls", f"{error.code} {error.reason}")
            time.sleep(RETRY_SECONDS)

    def age_temporary_files(self) -> None:
        """Make temporary files old enough to be deleted; no process may be writing."""
        self._ledger.count("temporary files", "half-written", self.place.age_temporary_files())

    def _supervise(self) -> None:
        while not self._stopping:
            server = Running(
                [sys.executable, "-m", "soak.server", "serve", *self.place.options(),
                 "--address", "127.0.0.1:0", "--provider", "cpu", "--log-format", "json"],
                self._armed.parent,
                {steps.ARMED: str(self._armed)},
            )  # fmt: skip
            self.servers.append(server)
            with contextlib.suppress(AssertionError):  # it died before it was ready
                client = Client(server.address)
                self._clients.append(client)
                with self._changed:
                    self._client = client
                    self._changed.notify_all()
            server.process.wait()
            with self._changed:
                self._client = None
            # Else the next server may find the last server's worker still running.
            if self._rng.random() < 0.5 and server.wait_ended():
                self._check_repository()

    def _check_repository(self) -> None:
        """Run fsck while no process runs, and age temporary files for the next worker to delete."""
        with self.cleanup_lock, self.place.steady:
            self.age_temporary_files()
            for problem in check(self.repository):
                if problem.severity == "error":
                    self._ledger.fail(f"fsck after a kill: {problem.path}: {problem.text}")
            self._ledger.count("checks", "fsck while no process ran")
