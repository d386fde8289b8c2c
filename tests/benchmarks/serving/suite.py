"""Parts of the serving benchmark, each with its server and its measurements."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.serving import burst_and_start, edge, learning, loads, overload, peers, swaps
from benchmarks.serving.ceiling import Ceiling
from benchmarks.serving.client import Endpoint
from benchmarks.serving.loads import Case, Durations, Row
from benchmarks.serving.processes import WORKER, Processes
from benchmarks.serving.tables import Table
from benchmarks.serving.workload import CLASSIFY, PRECISIONS, Workload, decode, requests
from topwork.runtime.cores import available_cores
from topwork_trainer import commands

BOTH_ENDS = (1, 32)
"""Numbers of callers."""
DEADLINE = 0.3
"""Deadline in seconds under overload."""


class Suite:
    """Runs the parts; servers write their logs below ``logs``."""

    def __init__(
        self, workload: Workload, logs: Path, *, quick: bool, swaps: int, peers: Path | None
    ) -> None:
        self._workload = workload
        self._log = logs / "log"
        self._quick = quick
        self._swaps = 20 if quick else swaps
        self._peers = peers
        self._cores = available_cores()
        self._durations = (
            Durations(load=4.0, ceiling=1.0) if quick else Durations(load=3.0, ceiling=1.0)
        )
        self._long = self._durations.load * 5 / 3

    def measure(self, part: str) -> Table:
        """Return the table of one of PARTS."""
        return PARTS[part](self)

    def loads(self) -> Table:
        """Measure both precisions, few and many callers, one and many images in a request."""
        grid = [(callers, 1) for callers in (1, 8, 32, 128)] + [(n, 16) for n in (1, 8, 32)]
        if self._quick:
            grid = [(1, 1), (32, 1), (8, 16)]
        rows = []
        with self._serving(self._workload.main) as (address, processes):
            for precision in ("int8",) if self._quick else PRECISIONS:
                ceiling = self._ceiling(precision)
                for callers, images in grid:
                    case = self._case(
                        address, [precision], precision=precision, callers=callers, images=images
                    )
                    rows.append(self._row(case, processes, ceiling))
        return loads.table("loads", rows)

    def models(self) -> Table:
        """Measure one model, then many with one backbone and their own logistic heads."""
        rows = []
        ceiling = self._ceiling("int8")
        for repository, count in self._repositories():
            with self._serving(repository) as (address, processes):
                for callers in BOTH_ENDS:
                    models = [f"linear-{number}" for number in range(count)]
                    case = self._case(address, models, precision="int8", callers=callers)
                    rows.append(self._row(case, processes, ceiling))
        return loads.table("models", rows)

    def learning(self) -> Table:
        """Measure with and without a running AddClass."""
        self._workload.roll_back_learners()
        rows: list[learning.Learning] = []
        with self._serving(self._workload.main) as (address, _):
            for callers in (8,) if self._quick else (1, 8):
                first = sum(row.classes_added for row in rows)
                rows.append(
                    learning.measure(
                        address, self._workload, callers=callers, seconds=self._long, first=first
                    )
                )
        return learning.table(rows)

    def overload(self) -> Table:
        """Measure load shedding."""
        options = ("--max-seconds", DEADLINE)
        with self._serving(self._workload.main, *options) as (address, _):
            row = overload.measure(address, self._workload, deadline=DEADLINE, seconds=self._long)
        return overload.table([row])

    def swaps(self) -> Table:
        """Measure repeated swaps of revisions."""
        with self._serving(self._workload.main) as (address, processes):
            row = swaps.measure(address, self._workload, processes, swaps=self._swaps)
        return swaps.table([row])

    def burst(self) -> Table:
        """Measure lone requests right after a burst."""
        with self._serving(self._workload.main) as (address, _):
            row = burst_and_start.measure_burst(
                address, self._workload, seconds=self._durations.load
            )
        return burst_and_start.burst_table([row])

    def edge(self) -> Table:
        """Measure with and without TLS, tokens, limits and metrics, alternately."""
        rows = []
        security = edge.Security(self._log.parent)
        with (
            commands.serving(self._workload.main, self._log.with_suffix(".open")) as plain,
            commands.serving(
                self._workload.main, self._log, "--executor", "secured", *security.options
            ) as secured,
        ):
            servers = [
                (server.address, Processes(server.process.pid, without=WORKER))
                for server in (plain, secured)
            ]
            for precision in ("int8",) if self._quick else PRECISIONS:
                for callers, images in ((32, 1), (32, 16)):
                    case = self._case(
                        plain.address,
                        [precision],
                        precision=precision,
                        callers=callers,
                        images=images,
                    )
                    row = edge.measure(
                        case,
                        security,
                        *servers,
                        turns=2 if self._quick else 8,
                        seconds=self._durations.load * (2 if images > 1 else 1),
                    )
                    rows.append(row)
        return edge.table(rows)

    def start(self) -> Table:
        """Measure the start-up time."""
        rows = [
            burst_and_start.measure_start(
                repository, self._log, models=count, starts=2 if self._quick else 5
            )
            for repository, count in self._repositories()
        ]
        return burst_and_start.start_table(rows)

    def peers(self) -> Table:
        """Measure Topwork and other servers with the same ONNX files, decoder and photos."""
        assert self._peers is not None, (
            "peers are only measured with a directory for their environments"
        )
        ceiling, bare = self._ceiling("int8"), self._workload.bare("int8")
        photos, rows = self._workload.photos, list[Row]()
        with self._serving(self._workload.main) as (address, processes):
            for callers in BOTH_ENDS:
                case = self._case(address, ["int8"], precision="int8", callers=callers)
                rows.append(self._row(case, processes, ceiling))
        for peer in peers.PEERS:
            try:
                python = peers.install(peer, self._peers)
                with peers.running(peer, python, bare, photos[0], self._log, cores=self._cores) as (
                    endpoint,
                    pid,
                ):
                    bodies = [peer.encode(photo) for photo in photos]
                    peers.check(peer, endpoint, bodies, [ceiling.top5(photo) for photo in photos])
                    for callers in BOTH_ENDS:
                        case = Case(
                            endpoint=endpoint,
                            bodies=bodies,
                            check=peers.top5,
                            server=peer.name,
                            precision="int8",
                            callers=callers,
                            images=1,
                        )
                        rows.append(self._row(case, Processes(pid), ceiling))
            except (peers.NotMeasured, ExceptionGroup) as error:
                print(f"not measured: {error}", file=sys.stderr)
        return loads.table("peers", rows)

    def _repositories(self) -> list[tuple[Path, int]]:
        return [(self._workload.single, 1), (self._workload.many, self._workload.models)]

    def _ceiling(self, precision: str) -> Ceiling:
        return Ceiling(self._workload.bare(precision), self._workload.photos, cores=self._cores)

    @contextlib.contextmanager
    def _serving(self, repository: Path, *options: object) -> Iterator[tuple[str, Processes]]:
        with commands.serving(repository, self._log, *options) as served:
            yield served.address, Processes(served.process.pid, without=WORKER)

    def _row(self, case: Case, processes: Processes, ceiling: Ceiling) -> Row:
        return loads.measure(
            case, processes, ceiling=ceiling, cores=self._cores, durations=self._durations
        )

    def _case(
        self, address: str, models: list[str], *, precision: str, callers: int, images: int = 1
    ) -> Case:
        count = f", {len(models):,} models" if len(models) > 1 else ""
        return Case(
            endpoint=Endpoint(address=address, path=CLASSIFY),
            bodies=requests(self._workload.photos, models, images=images),
            check=decode,
            server=f"topwork{count}",
            precision=precision,
            callers=callers,
            images=images,
        )


PARTS = {
    "loads": Suite.loads,
    "models": Suite.models,
    "learning": Suite.learning,
    "overload": Suite.overload,
    "swaps": Suite.swaps,
    "burst": Suite.burst,
    "edge": Suite.edge,
    "start": Suite.start,
    "peers": Suite.peers,
}
