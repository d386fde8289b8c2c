"""Tables of a soak's results for the terminal."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from soak.soak import SoakResult

STARTS = {"ready": ("server", "both"), "worker ready": ("server", "worker", "both")}
"""Log events of a start, with the kills that it may follow."""


def show(result: SoakResult, console: Console) -> None:
    """Print all tables, then the violations."""
    kills = Table("kill -9", "at a random moment", "at a named step", "in all")
    for victims in ("server", "worker", "both", "store"):
        own = [kill for kill in result.kills if kill.victims == victims]
        steps = sum(bool(kill.step) for kill in own)
        kills.add_row(victims, str(len(own) - steps), str(steps), str(len(own)))
    console.print(kills)
    _print_counts(console, "named step", Counter(kill.step for kill in result.kills if kill.step))
    for topic in ("calls", "retried calls", "operations", "revisions", "answers", "checks"):
        _print_counts(console, topic, result.ledger.counts_of(topic))
    deleted = _log_entries(result, "swept")
    _print_counts(
        console,
        "temporary files",
        {**result.ledger.counts_of("temporary files"), "deleted at a start": len(deleted)},
    )
    _print_counts(
        console,
        "warnings and errors in the log",
        Counter(
            str(entry["event"])
            for server in result.servers
            for entry in server
            if entry.get("level") in {"warning", "error"}
        ),
    )
    starts = Table("from a kill to", "starts", "median, s", "longest, s")
    for event in STARTS:
        seconds = restarts(result, event)
        if seconds:
            median = f"{np.median(seconds):.2f}"
            starts.add_row(event, str(len(seconds)), median, f"{max(seconds):.2f}")
    console.print(starts)
    console.print(
        f"seed {result.seed}: {len(result.kills)} kills in {result.seconds:.0f} s, "
        f"{len(result.missed)} steps not reached in time, slowest answer "
        f"{result.ledger.slowest:.2f} s, {len(result.ledger.violations)} violations",
        highlight=False,
        soft_wrap=True,
    )
    for text in result.ledger.violations[:50]:
        console.print("[red]violated:[/]", escape(text), highlight=False, soft_wrap=True)


def restarts(result: SoakResult, event: str) -> list[float]:
    """Return the seconds from the last kill to each start."""
    kills = np.array([kill.time for kill in result.kills if kill.victims in STARTS[event]])
    seconds = []
    for entry in _log_entries(result, event):
        moment = datetime.fromisoformat(str(entry["timestamp"])).timestamp()
        before = kills[kills < moment]
        if len(before):
            seconds.append(float(moment - before[-1]))
    return seconds


def _log_entries(result: SoakResult, event: str) -> list[dict[str, object]]:
    return [entry for server in result.servers for entry in server if entry.get("event") == event]


def _print_counts(console: Console, title: str, counts: dict[str, int]) -> None:
    table = Table(title, "times")
    for outcome, count in counts.items():
        table.add_row(escape(outcome), f"{count:,}")
    console.print(table)
