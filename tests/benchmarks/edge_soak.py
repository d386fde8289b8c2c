"""Soak test of TLS, authentication and cancellation: ``make soak-edge MINUTES=60``.

Clients connect and leave with TLS, half of them with certificates and half with tokens; every tenth
call is cancelled at a random moment, and the server's certificate is renewed every few seconds.
Every answer is compared with the first answer for the same photo. Prints one JSON object; exits
with 1 if an answer was wrong or lost or the server's memory grew by more than 3 %.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import uvloop
from support import tiny
from support.certificates import Authority
from support.pictures import pictures

from benchmarks.serving.processes import free_port
from topwork import AsyncClient, CallFailed, Credentials, ImageResult
from topwork.access import tokens
from topwork_trainer import commands

CLIENTS = 12
"""Number of concurrent clients."""
CALLS = 10
"""Maximum of calls of a client before it leaves."""
CANCELLED = 0.14
"""Share of calls to cancel; some end before, so that about a tenth is cancelled."""
TIMEOUT = 60.0
"""Timeout of a call in seconds."""
MOST_GROWTH = 0.03
CLOSE = 1e-4
"""Maximum difference of probabilities of the same photo."""
WARM, BASE, LAST = 0.2, 0.3, 0.9
"""Shares of the run time: memory from WARM to BASE is compared with memory from LAST on."""


@dataclass(slots=True)
class Tally:
    """Counts of calls, problems, and memory over time."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Pairs of elapsed share of the run time, and MiB."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A photo and its first answer."""

    photo: bytes
    answer: dict[str, float]
    """Probability of each label."""


class Soak:
    """One run against one server."""

    def __init__(
        self,
        pid: int,
        kinds: Sequence[tuple[str, Credentials]],
        seconds: float,
        renew: Callable[[], object],
    ) -> None:
        self._renew = renew
        self._pid = pid
        self._kinds = kinds
        self._seconds = seconds
        self._start = 0.0
        self._mean_seconds = 0.01
        """Moving average of a call's seconds."""
        self.tally = Tally()
        self._samples: list[Sample] = []

    async def run(self) -> None:
        """Run clients until the time is over."""
        photos = [photo for label in ("amber", "blue", "green") for photo in pictures(label, 12)]
        async with AsyncClient(*self._kinds[0]) as client:
            first = await client.classify("colours", photos, timeout=TIMEOUT)
        answers = map(_probabilities, first.results)
        self._samples = [Sample(*pair) for pair in zip(photos, answers, strict=True)]
        self._start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._run_clients(random.Random(number)))
            while self._share() < 1:
                self.tally.memory.append((self._share(), _memory_mib(self._pid)))
                await asyncio.to_thread(self._renew)
                self.tally.counts["certificates"] += 1
                await asyncio.sleep(min(5.0, self._seconds / 100))

    def _share(self) -> float:
        return (time.monotonic() - self._start) / self._seconds

    async def _run_clients(self, rng: random.Random) -> None:
        while self._share() < 1:
            async with AsyncClient(*rng.choice(self._kinds)) as client:
                self.tally.counts["connections"] += 1
                for _ in range(rng.randint(1, CALLS)):
                    sent = rng.choices(self._samples, k=rng.randint(1, 8))
                    begun = time.monotonic()
                    call = asyncio.create_task(self._call(client, sent, stream=rng.random() < 0.2))
                    if rng.random() < CANCELLED:
                        await asyncio.wait((call,), timeout=rng.random() * self._mean_seconds)
                        call.cancel()
                    await asyncio.gather(call, return_exceptions=True)
                    self._note(call, sent)
                    if not call.cancelled():
                        self._mean_seconds += 0.05 * (time.monotonic() - begun - self._mean_seconds)

    async def _call(
        self, client: AsyncClient, sent: Sequence[Sample], *, stream: bool
    ) -> list[ImageResult]:
        photos = [sample.photo for sample in sent]
        if not stream:
            return list((await client.classify("colours", photos, timeout=TIMEOUT)).results)
        answers = client.classify_stream("colours", photos, images_per_message=2, timeout=TIMEOUT)
        return [answer.result async for answer in answers]

    def _note(self, call: asyncio.Task[list[ImageResult]], sent: Sequence[Sample]) -> None:
        if call.cancelled():
            self.tally.counts["cancelled"] += 1
        elif (error := call.exception()) is not None:
            self.tally.counts["lost"] += 1
            code = error.code if isinstance(error, CallFailed) else type(error).__name__
            self.tally.problems.append(f"{code}: {error}")
        else:
            self.tally.counts["answered"] += 1
            for sample, result in zip(sent, call.result(), strict=True):
                probabilities = _probabilities(result)
                if sample.answer.keys() != probabilities.keys() or any(
                    abs(probabilities[label] - value) > CLOSE
                    for label, value in sample.answer.items()
                ):
                    self.tally.counts["wrong"] += 1
                    self.tally.problems.append(f"{probabilities} instead of {sample.answer}")


@click.command()
@click.option("--minutes", default=60.0, type=click.FloatRange(min=0, min_open=True))
def main(minutes: float) -> None:
    """Soak a new server on the loopback."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        authority, made = Authority(root), tokens.make()
        server, client = authority.issue("server"), authority.issue("client")
        access = root / "access.toml"
        access.write_text(
            f"[principals.soak]\ntokens = ['{made.entry}']\ncertificates = ['CN:client']\n"
            "classify = ['*']\nlimits = { calls = 1000, images = 10000 }\n"
        )
        mtls = free_port()
        repository = tiny.repository(root / "repository")
        options = (
            *("--tls-cert", server.cert, "--tls-key", server.key, "--access", access),
            *("--client-ca", authority.ca, "--mtls-address", f"127.0.0.1:{mtls}"),
            *("--queue-limit", 10_000, "--metrics-port", 0, "--health-port", 0),
        )
        with_token = Credentials.from_files(tls_ca=authority.ca, token=made.token)
        with_certificate = Credentials.from_files(
            tls_ca=authority.ca, client_cert=client.cert, client_key=client.key
        )
        with commands.serving(repository.root, root / "log", *options) as served:
            kinds = ((served.address, with_token), (f"127.0.0.1:{mtls}", with_certificate))
            soak = Soak(served.process.pid, kinds, minutes * 60, partial(authority.issue, "server"))
            uvloop.run(soak.run())
    sys.exit(0 if _report(soak.tally, minutes) else 1)


def _report(tally: Tally, minutes: float) -> bool:
    """Print the results, and return whether the run passed."""
    before = max(mib for share, mib in tally.memory if WARM <= share <= BASE)
    after = max(mib for share, mib in tally.memory if share >= LAST)
    growth = after / before - 1
    for problem in tally.problems[:10]:
        print(problem, file=sys.stderr)
    keys = ("connections", "certificates", "answered", "cancelled", "wrong", "lost")
    row = {"minutes": minutes, **{key: tally.counts[key] for key in keys}}
    row |= {"before_mib": round(before, 1), "after_mib": round(after, 1)}
    print(json.dumps(row | {"growth": round(growth, 4)}))
    return not tally.problems and growth <= MOST_GROWTH


def _probabilities(result: ImageResult) -> dict[str, float]:
    return dict(result.predictions)


def _memory_mib(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
