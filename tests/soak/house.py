"""Keeps a server running as an operator's supervisor does: when it ends, another is started."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from support.servers import PATIENCE, Running

from soak import steps
from soak.ledger import Ledger
from topwork import CallFailed, Client
from topwork.bundle.files import ABANDONED_AFTER, TEMPORARY
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository

T = TypeVar("T")

AGAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
"""Codes of calls that may be made again."""

AGAIN_SECONDS = 0.05
MOST_SECONDS = 600.0
"""That a call is made again; servers that die all the time may keep one from its end for long."""


class House:
    """One server after another, each with its worker, of one repository."""

    def __init__(self, repository: Repository, armed: Path, ledger: Ledger, seed: int) -> None:
        self.repository = repository
        self.lives: list[Running] = []
        self.swept = threading.Lock()
        """Held while something else than server and worker deletes what is left over."""
        self._armed = armed
        self._ledger = ledger
        self._rng = random.Random(f"{seed} house")
        self._up = threading.Condition()
        self._client: Client | None = None
        self._clients: list[Client] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="house")

    def start(self) -> None:
        """Start the first server."""
        self._thread.start()

    def stop(self) -> None:
        """End the server as an operator does, and start no other."""
        with self._up:
            self._stopping = True
        life = self.life()
        if life.stop() != 0:
            self._ledger.violated(f"SIGTERM ended the server with {life.process.returncode}")
        self._thread.join()
        for client in self._clients:
            client.close()
        for life in self.lives:
            if not life.wait_ended():
                self._ledger.violated("a process outlived its server")
            codes = {
                fact["exit_code"] for fact in life.log_entries if fact["event"] == "worker died"
            }
            for code in {life.process.returncode, *codes} - {0, -signal.SIGKILL}:
                self._ledger.violated(f"a process ended with {code}")
            life.close()

    def life(self) -> Running:
        """Return the server that runs, once it is ready."""
        with self._up:
            assert self._up.wait_for(lambda: self._client is not None, PATIENCE), "it is down"
            return self.lives[-1]

    def client(self) -> Client:
        """Return a client of the server that runs, once it is ready."""
        with self._up:
            self._up.wait_for(lambda: self._client is not None, PATIENCE)
            assert self._client is not None, f"no server is ready:\n{self.lives[-1].log}"
            return self._client

    def ask(self, call: Callable[[Client], T]) -> T:
        """Return what ``call`` gives, again and again while servers die. Raises CallFailed."""
        end = time.monotonic() + MOST_SECONDS
        while True:
            try:
                return call(self.client())
            except CallFailed as error:
                if error.code not in AGAIN or time.monotonic() > end:
                    raise
                self._ledger.count("calls made again", f"{error.code} {error.reason}")
            time.sleep(AGAIN_SECONDS)

    def age_leftovers(self) -> None:
        """Make what was left half-written old enough to be swept; nobody must be writing."""
        long_ago = time.time() - 2 * ABANDONED_AFTER
        for path in self.repository.root.rglob(f"{TEMPORARY}*"):
            os.utime(path, (long_ago, long_ago))
            self._ledger.count("leftovers", "half-written")

    def _keep(self) -> None:
        while not self._stopping:
            life = Running(
                [sys.executable, "-m", "soak.served", "serve", "--repository",
                 str(self.repository.root), "--address", "127.0.0.1:0", "--provider", "cpu",
                 "--log-format", "json"],
                self.repository.root,
                {steps.ARMED: str(self._armed)},
            )  # fmt: skip
            self.lives.append(life)
            with contextlib.suppress(AssertionError):  # it died before
                client = Client(life.address)
                self._clients.append(client)
                with self._up:
                    self._client = client
                    self._up.notify_all()
            life.process.wait()
            with self._up:
                self._client = None
            # Half of the times the next one finds the worker of the last one still there.
            if self._rng.random() < 0.5 and life.wait_ended():
                self._look()

    def _look(self) -> None:
        """With all processes dead, verify what they left, and let the next worker sweep it."""
        with self.swept:
            self.age_leftovers()
            for problem in check(self.repository):
                if problem.severity == "error":
                    self._ledger.violated(f"after a death: {problem.path}: {problem.text}")
            self._ledger.count("checks", "fsck while all were dead")
