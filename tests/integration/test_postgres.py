"""Several hosts: servers and workers with one PostgreSQL database and one repository."""

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
from support.postgres import Postgres
from support.servers import DEATHS, Running, eventually

from topwork.bundle.store import Repository
from topwork.changes.database import APPLICATION, CHANGE, noted_database
from topwork.changes.jobs import Job
from topwork.changes.operations import Operations
from topwork.changes.queue import OperationFilter
from topwork.changes.rows import OperationState
from topwork.errors import Unavailable
from topwork.runtime.supervisor import GAVE_UP

MODELS = ("colours", "hues", "shades", "tones")
EACH = 4

WORKER = (
    "import sys; from support import servers; from topwork.cli.serve import worker;"
    "servers.arrange_deaths();"
    "servers.note_calls('topwork.changes.retrain:learn', sys.argv.pop(1)); worker()"
)
SOLVED = "solved"
"""The file in the repository that has a line for each head that was solved."""


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
    """Yield a look into the database, once it has its tables."""
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
def working(
    repository: Repository, url: str, executor: str, *, deaths: Sequence[str] = ()
) -> Iterator[Running]:
    """Run a worker as a host of its own does; it dies after the calls ``deaths``."""
    arguments = ["--repository", str(repository.root), "--database", url, "--executor", executor]
    notes = str(repository.root / SOLVED)
    started = Running(
        [sys.executable, "-c", WORKER, notes, *arguments, "--log-format", "json"],
        repository.root,
        {DEATHS: json.dumps([str(repository.root), *deaths])},
    )
    try:
        started.fact("worker ready")
        yield started
    finally:
        started.close()


def submit(repository: Repository, url: str) -> dict[str, list[str]]:
    """Ask for changes that must be made in their order; return the operations' ids by model."""
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
    """Return a change that any model can have."""
    return Job(kind="retrain", model=model, accepted=time.time())


def finished(client: DBOSClient) -> list[WorkflowStatus]:
    """Return all operations once all have ended."""

    def all_ended() -> list[WorkflowStatus] | None:
        found = client.list_workflows(name=CHANGE)
        return found if all(one.completed_at for one in found) else None

    return eventually(all_ended)


def check_done_once(repository: Repository, ids: dict[str, list[str]]) -> None:
    """Fail unless each model has one revision for each operation, in their order."""
    for model, operations in ids.items():
        revisions = [repository.manifest(model, number) for number in range(2, EACH + 2)]
        assert [one.operation for one in revisions] == operations
        assert [one.parent for one in revisions] == list(range(1, EACH + 1))
        assert f"blue-{EACH}" in revisions[-1].labels
        assert repository.serving(model) == EACH + 1
        assert not (repository.root / "models" / model / str(EACH + 2)).exists()


def test_two_workers_share_the_work(repository: Repository, url: str, client: DBOSClient) -> None:
    """Both work, each operation is done once, and one model's never at the same time."""
    with working(repository, url, "one"), working(repository, url, "two"):
        ids = submit(repository, url)
        done = finished(client)
    assert {one.status for one in done} == {"SUCCESS"}
    assert {one.executor_id for one in done} == {"one", "two"}
    assert {one.recovery_attempts for one in done} == {1}
    solvers = (repository.root / SOLVED).read_text().split()
    assert (len(solvers), len(set(solvers))) == (len(MODELS) * EACH, 2)  # none was solved twice
    assert noted_database(repository.root) == "postgresql"
    check_done_once(repository, ids)
    for operations in ids.values():
        steps = [step for one in operations for step in client.list_workflow_steps(one)]
        for before, after in itertools.pairwise(steps):
            assert before["completed_at_epoch_ms"] is not None
            assert after["started_at_epoch_ms"] is not None
            assert before["completed_at_epoch_ms"] <= after["started_at_epoch_ms"]


def test_the_work_of_a_host_that_is_gone_for_good_is_done(
    repository: Repository, url: str, client: DBOSClient
) -> None:
    """A worker that dies between publishing and saying so is taken over: nothing is done twice."""
    death = "topwork.bundle.store:Repository.publish"
    with (
        working(repository, url, "one", deaths=[death]) as one,
        working(repository, url, "two"),
    ):
        ids = submit(repository, url)
        assert one.gone()
        done = finished(client)
    assert {one.status for one in done} == {"SUCCESS"}
    check_done_once(repository, ids)
    attempts = [one.recovery_attempts or 0 for one in done]
    assert max(attempts) == 2  # what it was doing
    assert {one.executor_id for one in done if one.recovery_attempts == 2} == {"two"}


def test_a_database_that_was_away_costs_nothing(
    repository: Repository, url: str, cluster: Postgres
) -> None:
    """Without the database nothing is accepted; what was accepted before is done after it."""

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
            return await operations.wait(accepted.id, servers.PATIENCE)
        finally:
            await operations.aclose()

    with servers.running(repository.root, database=url, executor="one") as server:
        done = asyncio.run(scenario())
        assert server.process.poll() is None
    assert done.outcome is not None
    assert done.outcome.result is not None
    assert done.outcome.result.revision == repository.serving("colours") == 2


def test_a_server_starts_without_its_database(
    repository: Repository, url: str, cluster: Postgres
) -> None:
    """It serves what is there; when the database is there its worker makes changes."""

    async def scenario() -> OperationState:
        operations = Operations(url, repository)
        await operations.start()
        try:
            accepted = await operations.submit(retrain("colours"), str(uuid.uuid4()))
            return await operations.wait(accepted.id, servers.PATIENCE)
        finally:
            await operations.aclose()

    cluster.stop()
    try:
        server = Running([*servers.command(repository.root), "--database", url], repository.root)
        server.fact("no database")
        assert server.fact("ready")["models"] == len(MODELS)
        assert server.fact("worker died")["exit_code"] == GAVE_UP
    finally:
        cluster.start()
    try:
        done = asyncio.run(scenario())
    finally:
        server.close()
    assert done.outcome is not None
    assert done.outcome.result is not None
    assert repository.serving("colours") == 2


def test_operations_are_found_by_what_they_are_about(repository: Repository, url: str) -> None:
    """PostgreSQL lists those of a model, a page at a time, oldest first."""
    ids = submit(repository, url)

    async def scenario() -> list[list[str]]:
        operations = Operations(url, repository)
        await operations.start()
        try:
            wanted = OperationFilter(attributes={"model": "hues"}, done=False)
            pages = [await operations.list(wanted, offset=start, limit=3) for start in (0, 3)]
        finally:
            await operations.aclose()
        return [[one.id for one in page] for page in pages]

    assert asyncio.run(scenario()) == [ids["hues"][:3], ids["hues"][3:]]


def test_servers_may_start_at_once(repository: Repository, url: str) -> None:
    """Servers that find an empty database together make its tables, and each can use them."""

    async def scenario() -> list[OperationState]:
        together = [Operations(url, repository) for _ in range(3)]
        await asyncio.gather(*(one.start() for one in together))
        try:
            made = await together[0].submit(retrain("colours"), str(uuid.uuid4()))
            return [await one.get(made.id) for one in together]
        finally:
            await asyncio.gather(*(one.aclose() for one in together))

    first, *others = asyncio.run(scenario())
    assert others == [first, first]
