"""Servers and workers of several hosts with one PostgreSQL database and one repository."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
import uuid
from collections.abc import Iterator, Sequence

import pytest
from dbos import DBOSClient, DBOSPortableJSONSerializer, WorkflowStatus
from support import postgres, servers, tiny
from support.deaths import DEATHS
from support.postgres import Postgres
from support.servers import Running, eventually

from topwork import CallFailed, Client
from topwork.bundle.store import Repository
from topwork.changes.database import APPLICATION, CHANGE, noted_database
from topwork.changes.jobs import Job
from topwork.changes.operations import Operations
from topwork.changes.queue import OperationFilter
from topwork.changes.rows import OperationState
from topwork.errors import Unavailable
from topwork.runtime.supervisor import GAVE_UP

MODELS = ("colours", "hues", "shades")
EACH = 4

WORKER = (
    "import sys; from support import deaths; from topwork.cli.serve import worker;"
    "deaths.arrange();"
    "deaths.note_calls('topwork.changes.retrain:learn', sys.argv.pop(1)); worker()"
)
SOLVED = "solved"
"""File in the repository with the worker's process id for each solved head."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """Yield a PostgreSQL cluster."""
    with postgres.running() as made:
        yield made


@pytest.fixture
def url(cluster: Postgres) -> str:
    """Return the URL of an empty database."""
    return cluster.new_database()


@pytest.fixture
def client(url: str) -> Iterator[DBOSClient]:
    """Yield a DBOS client of the database."""
    made = DBOSClient(
        system_database_url=url,
        application_name=APPLICATION,
        serializer=DBOSPortableJSONSerializer(),
        lazy=True,
    )
    yield made
    made.destroy()


@pytest.fixture
def repository(colours: Repository) -> Repository:
    """Return a repository with several models."""
    manifest = colours.manifest("colours", 1)
    for model in MODELS[1:]:
        copy = tiny.publish_copy(colours, manifest, model=model)
        colours.set_serving(model, copy.revision, why="fit")
    return colours


@contextlib.contextmanager
def worker_process(
    repository: Repository, url: str, executor: str, *, deaths: Sequence[str] = ()
) -> Iterator[Running]:
    """Run a worker as on another host; it dies after the calls ``deaths``."""
    arguments = ["--repository", str(repository.root), "--database", url, "--executor", executor]
    notes = str(repository.root / SOLVED)
    started = Running(
        [sys.executable, "-c", WORKER, notes, *arguments, "--log-format", "json"],
        repository.root,
        {DEATHS: json.dumps([str(repository.root), *deaths])},
    )
    try:
        started.log_entry("worker ready")
        yield started
    finally:
        started.close()


def submit(repository: Repository, url: str) -> dict[str, list[str]]:
    """Submit changes that must run in order; return the operations' ids by model."""
    ids: dict[str, list[str]] = {model: [] for model in MODELS}

    async def scenario() -> None:
        operations = Operations(url, repository)
        await operations.start()
        try:
            for number, model in itertools.product(range(EACH), MODELS):
                job = Job(
                    kind="rename_class",
                    model=model,
                    label=f"blue-{number}" if number else "blue",
                    new_label=f"blue-{number + 1}",
                    accepted=time.time(),
                )
                made = await operations.submit(job, str(uuid.uuid4()))
                ids[model].append(made.id)
        finally:
            await operations.aclose()

    asyncio.run(scenario())
    return ids


def retrain(model: str) -> Job:
    """Return a change that is possible for any model."""
    return Job(kind="retrain", model=model, accepted=time.time())


def finished(client: DBOSClient) -> list[WorkflowStatus]:
    """Wait for all operations and return them."""

    def all_ended() -> list[WorkflowStatus] | None:
        workflows = client.list_workflows(name=CHANGE)
        return workflows if all(workflow.completed_at for workflow in workflows) else None

    return eventually(all_ended)


def check_done_once(repository: Repository, ids: dict[str, list[str]]) -> None:
    """Check that each model has one revision for each operation, in order."""
    for model, operations in ids.items():
        revisions = [repository.manifest(model, number) for number in range(2, EACH + 2)]
        assert [revision.operation for revision in revisions] == operations
        assert [revision.parent for revision in revisions] == list(range(1, EACH + 1))
        assert f"blue-{EACH}" in revisions[-1].labels
        assert repository.serving(model) == EACH + 1
        assert not (repository.root / "models" / model / str(EACH + 2)).exists()


def test_two_workers_share_the_work(repository: Repository, url: str, client: DBOSClient) -> None:
    """Both workers run operations, each one once, and those of one model never overlap."""
    with worker_process(repository, url, "one"), worker_process(repository, url, "two"):
        ids = submit(repository, url)
        done = finished(client)
    assert {workflow.status for workflow in done} == {"SUCCESS"}
    assert {workflow.executor_id for workflow in done} == {"one", "two"}
    assert {workflow.recovery_attempts for workflow in done} == {1}
    solvers = (repository.root / SOLVED).read_text().split()
    assert (len(solvers), len(set(solvers))) == (len(MODELS) * EACH, 2)  # each head once
    assert noted_database(repository.root) == "postgresql"
    check_done_once(repository, ids)
    for operations in ids.values():
        steps = [step for name in operations for step in client.list_workflow_steps(name)]
        for before, after in itertools.pairwise(steps):
            assert before["completed_at_epoch_ms"] is not None
            assert after["started_at_epoch_ms"] is not None
            assert before["completed_at_epoch_ms"] <= after["started_at_epoch_ms"]


def test_a_dead_host_is_taken_over(repository: Repository, url: str, client: DBOSClient) -> None:
    """Operations of a worker that dies after publishing are taken over; nothing is done twice."""
    death = "topwork.bundle.store:Repository.publish"
    with (
        worker_process(repository, url, "one", deaths=[death]) as first,
        worker_process(repository, url, "two"),
    ):
        ids = submit(repository, url)
        assert first.wait_ended()
        done = finished(client)
    assert {workflow.status for workflow in done} == {"SUCCESS"}
    check_done_once(repository, ids)
    attempts = [workflow.recovery_attempts or 0 for workflow in done]
    assert max(attempts) == 2  # the interrupted operation
    assert {workflow.executor_id for workflow in done if workflow.recovery_attempts == 2} == {"two"}


def test_operations_survive_an_outage(repository: Repository, url: str, cluster: Postgres) -> None:
    """During an outage nothing is accepted; operations accepted before it succeed after it."""

    async def scenario() -> OperationState:
        operations = Operations(url, repository)
        await operations.start()
        try:
            accepted = await operations.submit(retrain("colours"), str(uuid.uuid4()))
            cluster.stop()
            try:
                with pytest.raises(Unavailable) as refused:
                    await operations.submit(retrain("hues"), str(uuid.uuid4()))
                assert refused.value.reason == "DATABASE"
            finally:
                cluster.start()
            return await operations.wait(accepted.id, servers.TIMEOUT)
        finally:
            await operations.aclose()

    with servers.running(repository.root, database=url, executor="one") as server:
        done = asyncio.run(scenario())
        assert server.process.poll() is None
    assert done.outcome is not None
    assert done.outcome.result is not None
    assert done.outcome.result.revision == repository.serving("colours") == 2


def test_a_server_starts_without_database(
    repository: Repository, url: str, cluster: Postgres
) -> None:
    """The server serves models without the database; its worker starts once it is available."""

    async def scenario() -> OperationState:
        operations = Operations(url, repository)
        await operations.start()
        try:
            accepted = await operations.submit(retrain("colours"), str(uuid.uuid4()))
            return await operations.wait(accepted.id, servers.TIMEOUT)
        finally:
            await operations.aclose()

    cluster.stop()
    try:
        server = Running([*servers.command(repository.root), "--database", url], repository.root)
        server.log_entry("no database")
        assert server.log_entry("ready")["models"] == len(MODELS)
        assert server.log_entry("worker died")["exit_code"] == GAVE_UP
    finally:
        cluster.start()
    try:
        done = asyncio.run(scenario())
    finally:
        server.close()
    assert done.outcome is not None
    assert done.outcome.result is not None
    assert repository.serving("colours") == 2


def test_examples_are_removed_and_moved_once(repository: Repository, url: str) -> None:
    """The database keeps the digests: repeated calls are one operation, others are refused."""
    with (
        servers.running(repository.root, database=url) as server,
        Client(server.address) as client,
    ):
        listed = [example.digest for example in client.list_examples("colours", "label = blue")]
        request_id = str(uuid.uuid4())
        first, again = (
            client.remove_examples("colours", listed[:2], request_id=request_id) for _ in range(2)
        )
        assert first.name == again.name
        with pytest.raises(CallFailed) as caught:
            client.remove_examples("colours", listed[:3], request_id=request_id)
        assert caught.value.reason == "REQUEST_ID_REUSED"
        *_, removed = client.watch(first.name)
        assert [row.digest for row in removed.result().examples] == sorted(listed[:2])
        *_, moved = client.watch(client.move_examples("colours", listed[2:3], "green").name)
        assert moved.result().revision.revision == 3
        found = [operation.name for operation in client.operations("kind = remove_examples")]
        assert found == [first.name]
        labels = [example.label for example in client.list_examples("colours")]
        assert (labels.count("blue"), labels.count("green"), len(labels)) == (17, 21, 78)


def test_operations_are_listed_by_model(repository: Repository, url: str) -> None:
    """PostgreSQL lists the operations of a model in pages, oldest first."""
    ids = submit(repository, url)

    async def scenario() -> list[list[str]]:
        operations = Operations(url, repository)
        await operations.start()
        try:
            wanted = OperationFilter(attributes={"model": "hues"}, done=False)
            pages = [await operations.list(wanted, offset=start, limit=3) for start in (0, 3)]
        finally:
            await operations.aclose()
        return [[operation.id for operation in page] for page in pages]

    assert asyncio.run(scenario()) == [ids["hues"][:3], ids["hues"][3:]]


def test_servers_can_start_at_once_on_an_empty_database(repository: Repository, url: str) -> None:
    """Servers that start at once on an empty database create its tables, and all can use them."""

    async def scenario() -> list[OperationState]:
        together = [Operations(url, repository) for _ in range(3)]
        await asyncio.gather(*(replica.start() for replica in together))
        try:
            made = await together[0].submit(retrain("colours"), str(uuid.uuid4()))
            return [await replica.get(made.id) for replica in together]
        finally:
            await asyncio.gather(*(replica.aclose() for replica in together))

    first, *others = asyncio.run(scenario())
    assert others == [first, first]
