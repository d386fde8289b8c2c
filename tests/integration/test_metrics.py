"""Prometheus metrics of a running server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import servers, tiny
from support.pictures import picture
from support.servers import Running, failure

from topwork import Client
from topwork.bundle.store import Repository
from topwork.changes.database import database_url
from topwork.changes.monitor import Monitor
from topwork.changes.operations import Operations
from topwork.changes.quota import Quotas
from topwork.limits import DEFAULT_LIMITS
from topwork.telemetry import Telemetry

DEPLOY = Path(__file__).parents[2] / "deploy"
SERIES = re.compile(r"\b(?:topwork|grpc_server|process)_[a-z_]+\b")
PHOTO = picture("blue", 40)
CLASSIFY = {"grpc_service": "topwork.v1.ClassifierService", "grpc_method": "Classify"}


class Scrape:
    """Values of all series at one moment."""

    def __init__(self, server: Running) -> None:
        self.port = server.log_entry("metrics")["port"]
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=servers.TIMEOUT) as answer:  # the loopback
            self.kind = answer.headers["Content-Type"]
            text = answer.read().decode()
        self.names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        """Names of all metrics, and of the series of histograms."""
        suffixes = ("_bucket", "_count", "_sum")
        self.names |= {name + suffix for name in self.names for suffix in suffixes}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of a series, 0 if it does not exist yet."""
        return self._values.get((name, frozenset(labels.items())), 0.0)

    def code(self, code: str) -> float:
        """Return how many Classify calls ended with ``code``."""
        return self("grpc_server_handled_total", grpc_code=code, **CLASSIFY)


def test_metrics_count_calls_images_stages_and_swaps(colours: Repository) -> None:
    """Counters of calls, images, stages, errors and swaps grow with the calls; gauges follow."""
    with (
        servers.running(colours.root, worker=False, metrics_port=0, queue_limit=64) as server,
        Client(server.address) as client,
    ):
        before = Scrape(server)
        assert before.kind.startswith("text/plain")
        assert [before(f"topwork_{name}") for name in ("models", "heads", "swaps_total")] == [1] * 3
        assert before("process_resident_memory_bytes") > 2**20
        assert before.code("OK") == 0

        client.classify("colours", [PHOTO] * 3)
        client.classify("colours", [PHOTO, b"no photo"])
        assert failure(lambda: client.classify("unknown", [PHOTO])).code == "NOT_FOUND"
        assert failure(lambda: client.classify("colours", [])).code == "INVALID_ARGUMENT"
        after = Scrape(server)
        codes = {code: after.code(code) for code in ("OK", "NOT_FOUND", "INVALID_ARGUMENT")}
        assert codes == {"OK": 2, "NOT_FOUND": 1, "INVALID_ARGUMENT": 1}
        assert after("grpc_server_handling_seconds_count", **CLASSIFY) == 4
        assert after("topwork_images_total", model="colours", result="ok") == 4
        assert after("topwork_images_total", model="colours", result="error") == 1
        assert after("topwork_stage_seconds_count", stage="decode", kind="image") == 5
        assert after("topwork_stage_seconds_count", stage="backbone", kind="image") == 4
        assert after("topwork_queue_images") == 0

        list(client.classify_stream("colours", [PHOTO] * 40))
        streamed = Scrape(server)
        assert streamed("topwork_images_total", model="colours", result="ok") == 44
        assert (
            streamed(
                "grpc_server_handled_total",
                grpc_code="OK",
                **{**CLASSIFY, "grpc_method": "StreamClassify"},
            )
            == 1
        )

        made = tiny.publish_copy(colours, colours.manifest("colours", 1))
        colours.set_serving("colours", made.revision, why="test")
        servers.eventually(lambda: client.classify("colours", [PHOTO]).revision == 2)
        swapped = Scrape(server)
        assert [swapped(f"topwork_{name}") for name in ("models", "swaps_total")] == [1, 2]


def test_alerts_and_dashboard_name_metrics_of_a_real_scrape(colours: Repository) -> None:
    """They use only metrics that a server with a worker has. No series has a creation time."""
    with servers.running(colours.root, metrics_port=0) as server:
        servers.eventually(lambda: Scrape(server)("topwork_worker_up") == 1)
        scrape = Scrape(server)
    assert scrape("topwork_database_up") == 1
    assert scrape("topwork_operations", state="queued") == 0
    assert scrape("topwork_finished_operations_total", kind="add_class", result="OK") == 0
    assert scrape("topwork_repository_free_bytes") > 0
    named = {
        name
        for path in ("prometheus/alerts.yml", "grafana/topwork.json")
        for name in SERIES.findall((DEPLOY / path).read_text())
    }
    assert len(named) > 20
    assert named <= scrape.names
    assert not {name for name in scrape.names if name.endswith("_created")}


def test_finished_changes_are_read_from_the_database(colours: Repository) -> None:
    """A change that a worker carried out is counted once, with its stages."""
    telemetry, operations = Telemetry(), Operations(database_url(colours.root), colours)
    monitor = Monitor(
        colours,
        operations,
        Quotas(colours, DEFAULT_LIMITS),
        models=colours.models,
        most_models=1,
        limits=DEFAULT_LIMITS,
        telemetry=telemetry,
    )

    def value(name: str, **labels: str) -> float | None:
        return telemetry._registry.get_sample_value(name, labels)

    async def play(client: Client) -> None:
        await operations.start()
        await monitor.poll()
        try:
            violet = [(f"{seed}.png", picture("violet", seed)) for seed in range(20)]
            added = await asyncio.to_thread(client.add_class, "colours", "violet", violet)
            await monitor.poll()
            busy = [value("topwork_operations", state=state) for state in ("queued", "running")]
            assert sum(count or 0 for count in busy) <= 1
            await asyncio.to_thread(lambda: list(client.watch(added.name)))
            await monitor.poll()
            await monitor.poll()
        finally:
            await operations.aclose()

    with servers.running(colours.root) as server, Client(server.address) as client:
        asyncio.run(play(client))
    assert value("topwork_finished_operations_total", kind="add_class", result="OK") == 1
    assert value("topwork_operation_stage_seconds_count", stage="solving") == 1
    assert value("topwork_operations", state="running") == 0
    assert value("topwork_database_up") == 1


def test_an_exceeded_deadline_is_counted(colours: Repository) -> None:
    """A call that the server's own limit ends is counted, and each of its images as rejected."""
    with (
        servers.running(colours.root, worker=False, metrics_port=0, max_seconds=0.002) as server,
        Client(server.address) as client,
    ):
        large = picture("blue", 1, size=(1200, 900))
        assert failure(lambda: client.classify("colours", [large] * 8)).code == "DEADLINE_EXCEEDED"
        scrape = Scrape(server)
        assert scrape.code("DEADLINE_EXCEEDED") == 1
        assert scrape("topwork_rejected_images_total", reason="DEADLINE_PASSED") == 8


def test_the_metrics_port_closes_with_the_server(colours: Repository) -> None:
    """A server with a metrics port exits with 0, and the port is free again."""
    with servers.running(colours.root, worker=False, metrics_port=0) as server:
        port = Scrape(server).port
        assert server.stop() == 0
        assert server.wait_ended(), "a process was left behind"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), servers.TIMEOUT)


def test_there_is_no_metrics_port_by_default(server: Running) -> None:
    """Without ``metrics_port`` a server listens on its address and on the HTTP port only."""
    ports = {int(address.rpartition(":")[2]) for address in (server.address, server.http)}
    assert listening(server.process.pid) == ports
    assert "metrics" not in {entry.get("event") for entry in server.log_entries}


def listening(pid: int) -> set[int]:
    """Return the TCP ports that a process listens on."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed concurrently
            links.append(str(path.readlink()))
    ports = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
