"""What happened in a soak, for people."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from soak.soak import Soaked

STARTS = {"ready": ("server", "both"), "worker ready": ("server", "worker", "both")}
"""Log lines by which a start is known, and the kills that it may follow."""


def show(soaked: Soaked, console: Console) -> None:
    """Print all tables, then what was violated, if anything was."""
    kills = Table("kill -9", "at a random moment", "at a named step", "in all")
    for victims in ("server", "worker", "both"):
        own = [kill for kill in soaked.kills if kill.victims == victims]
        steps = sum(bool(kill.step) for kill in own)
        kills.add_row(victims, str(len(own) - steps), str(steps), str(len(own)))
    console.print(kills)
    _counted(console, "named step", Counter(one.step for one in soaked.kills if one.step))
    for what in ("calls", "calls made again", "operations", "revisions", "answers", "checks"):
        _counted(console, what, soaked.ledger.of(what))
    swept = _facts(soaked, "swept")
    _counted(
        console, "leftovers", {**soaked.ledger.of("leftovers"), "swept at a start": len(swept)}
    )
    _counted(
        console,
        "warnings and errors in the log",
        Counter(
            str(fact["event"])
            for life in soaked.lives
            for fact in life
            if fact.get("level") in {"warning", "error"}
        ),
    )
    starts = Table("from a kill to", "starts", "median, s", "longest, s")
    for event in STARTS:
        seconds = restarts(soaked, event)
        if seconds:
            median = f"{np.median(seconds):.2f}"
            starts.add_row(event, str(len(seconds)), median, f"{max(seconds):.2f}")
    console.print(starts)
    console.print(
        f"seed {soaked.seed}: {len(soaked.kills)} kills in {soaked.seconds:.0f} s, "
        f"{len(soaked.missed)} steps not reached in time, slowest answer "
        f"{soaked.ledger.slowest:.2f} s, {len(soaked.ledger.violations)} violations",
        highlight=False,
        soft_wrap=True,
    )
    for text in soaked.ledger.violations[:50]:
        console.print("[red]violated:[/]", escape(text), highlight=False, soft_wrap=True)


def restarts(soaked: Soaked, event: str) -> list[float]:
    """Return the seconds from the last kill before each start to it."""
    kills = np.array([kill.time for kill in soaked.kills if kill.victims in STARTS[event]])
    found = []
    for fact in _facts(soaked, event):
        moment = datetime.fromisoformat(str(fact["timestamp"])).timestamp()
        before = kills[kills < moment]
        if len(before):
            found.append(float(moment - before[-1]))
    return found


def _facts(soaked: Soaked, event: str) -> list[dict[str, object]]:
    return [fact for life in soaked.lives for fact in life if fact.get("event") == event]


def _counted(console: Console, title: str, counts: dict[str, int]) -> None:
    table = Table(title, "times")
    for how, count in counts.items():
        table.add_row(escape(how), f"{count:,}")
    console.print(table)
