"""Workers that an autoscaler starts and stops by the number of unfinished operations."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from dbos import DBOSClient
from support import postgres, servers
from support.servers import Running, eventually

from topwork.bundle.store import Repository
from topwork.changes.database import CHANGE, connect
from topwork.changes.jobs import Job
from topwork.changes.operations import Operations

ROOT = Path(__file__).parents[2]
KEDA = ROOT / "deploy" / "kubernetes" / "keda" / "worker.yaml"
PAGE = ROOT / "docs" / "deployment.md"
HANGING = (
    "import sys, time; from support import deaths; from topwork.cli.serve import worker;"
    "deaths.wrap('topwork.changes.retrain:learn', lambda _: lambda *_, **__: time.sleep(3600));"
    "worker()"
)
WORKING = "from topwork.cli.serve import worker; worker()"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of an empty database."""
    with postgres.running() as cluster:
        yield cluster.new_database()


@pytest.fixture
def client(url: str) -> Iterator[DBOSClient]:
    """Yield a client of the database, with its tables and the autoscaler's role."""
    made = connect(url)
    (grants,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with psycopg.connect(url) as database:
        database.execute(grants)
    yield made
    made.destroy()


def wanted_models(url: str) -> int:
    """Return what the autoscaler's query finds."""
    scaled, _ = yaml.safe_load_all(KEDA.read_text())
    (trigger,) = scaled["spec"]["triggers"]
    with psycopg.connect(url) as database:
        database.execute("SET ROLE keda")
        (row,) = database.execute(trigger["metadata"]["query"])
        return int(row[0])


@contextlib.contextmanager
def worker_process(program: str, repository: Repository, url: str, name: str) -> Iterator[Running]:
    """Run a worker as in a pod of its own."""
    arguments = ["--repository", str(repository.root), "--database", url, "--executor", name]
    started = Running(
        [sys.executable, "-c", program, *arguments, "--log-format", "json"], repository.root
    )
    try:
        started.log_entry("worker ready")
        yield started
    finally:
        started.close()


def submit(repository: Repository, url: str) -> None:
    """Submit a change."""

    async def scenario() -> None:
        operations = Operations(url, repository)
        await operations.start()
        try:
            job = Job(kind="retrain", model="colours", accepted=time.time())
            await operations.submit(job, str(uuid.uuid4()))
        finally:
            await operations.aclose()

    asyncio.run(scenario())


def test_a_stopped_worker_leaves_its_operations_to_others(
    colours: Repository, url: str, client: DBOSClient
) -> None:
    """They count until they end, also while no worker runs, so that one is started again."""
    assert wanted_models(url) == 0
    submit(colours, url)
    assert wanted_models(url) == 1

    def statuses() -> list[str]:
        return sorted(row.status for row in client.list_workflows(name=CHANGE))

    with worker_process(HANGING, colours, url, "topwork-worker-1") as stopped:
        eventually(lambda: statuses() == ["PENDING"])
        stopped.process.send_signal(signal.SIGTERM)
        assert stopped.process.wait(servers.TIMEOUT) == 0
    assert statuses() == ["PENDING"]
    assert wanted_models(url) == 1
    submit(colours, url)
    assert wanted_models(url) == 1  # the changes of a model run one after another
    with worker_process(WORKING, colours, url, "topwork-worker-0"):
        eventually(lambda: statuses() == ["SUCCESS", "SUCCESS"])
    assert wanted_models(url) == 0
    done = client.list_workflows(name=CHANGE)
    assert {row.executor_id for row in done} == {"topwork-worker-0"}
    assert sorted(row.recovery_attempts or 0 for row in done) == [1, 2]
    assert colours.serving("colours") == 3
