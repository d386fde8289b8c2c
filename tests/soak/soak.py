"""One soak from its start to its verdict."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from soak.callers import Asker, Changer
from soak.house import House
from soak.keeper import Keeper
from soak.killer import Kill, Killer
from soak.ledger import Ledger
from soak.pool import MODELS, Pool
from soak.verdict import Verdict

CHANGERS = 2
"""For each model."""
ASKERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What came of a soak."""

    seed: int
    seconds: float
    kills: tuple[Kill, ...]
    missed: tuple[str, ...]
    lives: tuple[tuple[dict[str, object], ...], ...]
    """What each server and its workers logged."""
    ledger: Ledger


def soak(
    root: Path,
    *,
    kills: int,
    minutes: float,
    seed: int,
    on_kill: Callable[[int], None] = lambda _done: None,
) -> Soaked:
    """Soak a new repository below ``root`` until so many kills are done or the time is over.

    ``on_kill`` is told of how many are done, after each try.
    """
    start = time.monotonic()
    pool, ledger, over = Pool(), Ledger(), threading.Event()
    repository = pool.repository(root / "repository")
    armed = root / "armed"
    house = House(repository, armed, ledger, seed)
    keeper = Keeper(repository, house, ledger, over)
    killer = Killer(house, armed, seed, over, on_kill)
    changers = [
        Changer(model, pool, house, ledger, f"{seed} {model} {number}", over)
        for model in MODELS
        for number in range(CHANGERS)
    ]
    askers = [
        Asker(pool, house, keeper.labels, ledger, f"{seed} asker {number}", over, MODELS)
        for number in range(ASKERS)
    ]
    runs = [one.run for one in changers] + [one.run for one in askers]
    runs += [keeper.check, keeper.collect]
    threads = [threading.Thread(target=_guarded(run, ledger)) for run in runs]
    clock = threading.Timer(60 * minutes, over.set)
    verdict = Verdict(repository, pool, keeper, house, ledger)
    house.start()
    clock.start()
    for thread in threads:
        thread.start()
    try:
        _guarded(lambda: killer.run(kills), ledger)()
    finally:
        clock.cancel()
        over.set()
        for thread in threads:
            thread.join()
        _guarded(verdict.wait, ledger)()
        house.stop()
    _guarded(verdict.judge, ledger)()
    if len(killer.kills) < kills:
        ledger.violated(f"only {len(killer.kills)} of {kills} kills in {minutes:g} minutes")
    return Soaked(
        seed=seed,
        seconds=time.monotonic() - start,
        kills=tuple(killer.kills),
        missed=tuple(killer.missed),
        lives=tuple(tuple(life.log_entries) for life in house.lives),
        ledger=ledger,
    )


def _guarded(run: Callable[[], None], ledger: Ledger) -> Callable[[], None]:
    """Return what runs ``run``; an error of its own is a violation, too."""

    def guarded() -> None:
        try:
            run()
        except Exception as error:
            ledger.violated(f"{error!r}\n{traceback.format_exc()}")

    return guarded
