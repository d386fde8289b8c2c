"""Kills server, worker or both, at random moments and at named steps."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from support.servers import workers_of

from soak import steps
from soak.steps import STEPS, Step
from soak.supervisor import Supervisor

Victims = Literal["server", "worker", "both", "store"]

LONGEST_PAUSE = 2.5
"""Maximum of seconds between a start and the next kill."""
STEP_SECONDS = 8.0
"""Timeout of a step in seconds."""
SHARE_OF_STEPS = 0.5
"""Share of kills at named steps; the others are at random moments."""

SHARE_OF_STORE = 0.2
"""Share of kills that hit the object store, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill -9."""

    time: float
    """Seconds since 1970."""
    victims: Victims
    step: str = ""
    """Process and name of the step; empty for a random moment."""


class Killer:
    """Kills until ``stop`` is set or the number of kills is reached."""

    def __init__(
        self,
        supervisor: Supervisor,
        armed: Path,
        seed: int,
        stop: threading.Event,
        on_kill: Callable[[int], None],
    ) -> None:
        self.kills: list[Kill] = []
        self.missed: list[str] = []
        """Steps that were not reached in time."""
        self._supervisor = supervisor
        self._armed = armed
        self._rng = random.Random(f"{seed} killer")
        self._stop = stop
        self._on_kill = on_kill

    def run(self, most: int) -> None:
        """Kill ``most`` times, at all named steps about equally often."""
        targets = self._targets()
        while len(self.kills) < most and not self._stop.is_set():
            if self._rng.random() < 0.8:  # else during the start
                self._supervisor.server()
                self._stop.wait(self._rng.uniform(0, LONGEST_PAUSE))
            else:
                self._stop.wait(self._rng.uniform(0, 1))
            kill_store = self._supervisor.place.kill_store
            if kill_store is not None and self._rng.random() < SHARE_OF_STORE:
                self.kills.append(Kill(time=time.time(), victims="store"))
                kill_store()
            elif self._rng.random() < SHARE_OF_STEPS:
                self._at_step(next(targets))
            else:
                self._at_random(self._rng.choice(["server", "worker", "both"]))
            self._on_kill(len(self.kills))

    def _targets(self) -> Iterator[Step]:
        bucket = self._supervisor.place.kill_store is not None
        steps = [step for step in STEPS if step.is_in(bucket=bucket)]
        while True:
            yield from self._rng.sample(steps, len(steps))

    def _at_random(self, victims: Victims) -> None:
        server = self._supervisor.server().process
        pids = [server.pid] if victims != "worker" else []
        if victims != "server":
            workers = workers_of(server.pid)
            if not workers and victims == "worker":
                return  # the worker is dead already
            pids += workers
        now = time.time()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(time=now, victims=victims))

    def _at_step(self, step: Step) -> None:
        both = self._rng.random() < 0.3
        steps.arm(self._armed, step, both=both)
        if step.at_start:
            self._at_random("both" if step.process == "server" else "worker")
        deadline = time.monotonic() + STEP_SECONDS
        while self._armed.exists():
            if time.monotonic() > deadline:
                with contextlib.suppress(FileNotFoundError):  # reached just now
                    self._armed.unlink()
                    self.missed.append(step.name)
                    return
                break
            time.sleep(0.005)
        victims: Victims = "both" if both else step.process
        self.kills.append(
            Kill(time=time.time(), victims=victims, step=f"{step.process}: {step.name}")
        )
