"""One run of the soak test, from start to verification."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from soak.clients import ChangeClient, ClassifyClient
from soak.killer import Kill, Killer
from soak.ledger import Ledger
from soak.lifecycle import LifecycleClient
from soak.maintainer import Maintainer
from soak.place import Place
from soak.pool import MODELS, Pool
from soak.supervisor import Supervisor
from soak.verifier import Verifier

CHANGE_CLIENTS = 2
"""Number of clients that change each model."""
CLASSIFY_CLIENTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakResult:
    """Kills, logs and ledger of a soak run."""

    seed: int
    seconds: float
    kills: tuple[Kill, ...]
    missed: tuple[str, ...]
    """Steps that were not reached in time."""
    servers: tuple[tuple[dict[str, object], ...], ...]
    """Log entries of each server and its workers."""
    ledger: Ledger


def soak(
    place: Place,
    armed: Path,
    *,
    kills: int,
    minutes: float,
    seed: int,
    on_kill: Callable[[int], None] = lambda _done: None,
) -> SoakResult:
    """Soak a new repository at ``place`` until ``kills`` are done or the time is up.

    ``armed`` is the file that names the next step to die at. ``on_kill`` is called with the number
    of kills after each attempt.
    """
    start = time.monotonic()
    pool, ledger, stop = Pool(), Ledger(), threading.Event()
    repository = place.open()
    pool.fill(repository)
    supervisor = Supervisor(place, repository, armed, ledger, seed)
    maintainer = Maintainer(repository, supervisor, ledger, stop)
    killer = Killer(supervisor, armed, seed, stop, on_kill)
    change_clients = [
        ChangeClient(model, pool, supervisor, ledger, f"{seed} {model} {number}", stop)
        for model in MODELS
        for number in range(CHANGE_CLIENTS)
    ]
    classify_clients = [
        ClassifyClient(
            pool, supervisor, maintainer.labels, ledger, f"{seed} classify {number}", stop, MODELS
        )
        for number in range(CLASSIFY_CLIENTS)
    ]
    runs = [client.run for client in change_clients] + [client.run for client in classify_clients]
    lifecycle = LifecycleClient(repository, pool, supervisor, ledger, f"{seed} lifecycle", stop)
    runs += [lifecycle.run, maintainer.check, maintainer.collect]
    threads = [threading.Thread(target=_guarded(run, ledger)) for run in runs]
    clock = threading.Timer(60 * minutes, stop.set)
    verifier = Verifier(repository, pool, maintainer, supervisor, ledger)
    supervisor.start()
    clock.start()
    for thread in threads:
        thread.start()
    try:
        _guarded(lambda: killer.run(kills), ledger)()
    finally:
        clock.cancel()
        stop.set()
        for thread in threads:
            thread.join()
        _guarded(verifier.wait, ledger)()
        supervisor.stop()
    _guarded(verifier.verify, ledger)()
    if len(killer.kills) < kills:
        ledger.fail(f"only {len(killer.kills)} of {kills} kills in {minutes:g} minutes")
    return SoakResult(
        seed=seed,
        seconds=time.monotonic() - start,
        kills=tuple(killer.kills),
        missed=tuple(killer.missed),
        servers=tuple(tuple(server.log_entries) for server in supervisor.servers),
        ledger=ledger,
    )


def _guarded(run: Callable[[], None], ledger: Ledger) -> Callable[[], None]:
    """Return a wrapper of ``run`` that records its exceptions as violations."""

    def guarded() -> None:
        try:
            run()
        except Exception as error:
            ledger.fail(f"{error!r}\n{traceback.format_exc()}")

    return guarded
