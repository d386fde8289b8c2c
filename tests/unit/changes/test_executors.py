"""Leases of workers, and takeover of orphaned operations."""

from __future__ import annotations

import fcntl
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from dbos import DBOSClient, DBOSPortableJSONSerializer, WorkflowStatus
from structlog.testing import capture_logs
from support import postgres
from support.postgres import Postgres

from topwork.changes import executors
from topwork.changes.database import APPLICATION, CHANGE, QUEUE, database_url, prepare
from topwork.changes.executors import Claim, Leases, Takeover, claim, lock_model
from topwork.changes.queue import APPLICATION_VERSION
from topwork.errors import InvalidInput
from topwork.storage.file_locks import FileLease
from topwork.storage.location import Location
from topwork.storage.locks import Lease

PATIENCE = 60.0
BUCKET = "s3://bucket/prefix"


class Queue:
    """The queue of a repository, and idle workers that take operations from it."""

    def __init__(self, url: str) -> None:
        prepare(url)
        self.client = DBOSClient(
            system_database_url=url,
            application_name=APPLICATION,
            serializer=DBOSPortableJSONSerializer(),
        )

    def add(self, model: str, *, priority: int = 1, version: str = APPLICATION_VERSION) -> str:
        """Enqueue an operation and return its id."""
        operation = str(uuid.uuid4())
        self.client.enqueue(
            {
                "queue_name": QUEUE,
                "workflow_name": CHANGE,
                "workflow_id": operation,
                "queue_partition_key": model,
                "priority": priority,
                "app_version": version,
            }
        )
        return operation

    def take(self, executor: str, *, version: str = APPLICATION_VERSION) -> list[str]:
        """Let a worker take operations, and return their ids."""
        queue = self.client.retrieve_queue(QUEUE)
        assert queue is not None
        return self.client._sys_db.start_queued_partitioned_workflows(
            queue, executor, version, owner_xid=str(uuid.uuid4())
        )

    def state(self, operation: str) -> WorkflowStatus:
        """Return an operation's state."""
        (status,) = self.client.list_workflows(workflow_ids=[operation])
        return status


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """Yield a PostgreSQL cluster."""
    with postgres.running() as made:
        yield made


@pytest.fixture(params=["directory", "bucket with SQLite", "bucket with PostgreSQL"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Location, str]:
    """Return the location of a repository, and the URL of its database of operations."""
    if request.param == "directory":
        return tmp_path, database_url(tmp_path)
    if request.param == "bucket with SQLite":
        return BUCKET, f"sqlite:///{tmp_path / 'operations.sqlite'}"
    return BUCKET, request.getfixturevalue("cluster").new_database()


@pytest.fixture
def leases(repository: tuple[Location, str]) -> Leases:
    """Return the leases of the repository's workers."""
    return Leases(*repository)


@pytest.fixture
def files(tmp_path: Path) -> Leases:
    """Return the leases of the workers of a directory."""
    return Leases(tmp_path, "")


@pytest.fixture
def queue(repository: tuple[Location, str]) -> Iterator[Queue]:
    """Yield an empty queue."""
    made = Queue(repository[1])
    yield made
    made.client.destroy()


@pytest.fixture
def own(leases: Leases) -> Iterator[Claim]:
    """Yield the claim of the worker under test."""
    made = claim(leases, "own")
    yield made
    made.release()


@pytest.fixture
def takeover(queue: Queue, own: Claim) -> Takeover:
    """Return the takeover of the worker ``own``, which runs nothing."""
    return Takeover(own, queue.client, running=())


def die(leases: Leases, executor: str) -> None:
    """Claim a name and release it, as a worker that dies."""
    claim(leases, executor).release()


def lock_file(claimed: Claim) -> Path:
    """Return the lock file of a worker of a directory."""
    assert isinstance(claimed.lease, FileLease)
    return claimed.lease.path


def test_claim_waits_for_a_worker_of_the_same_name(leases: Leases) -> None:
    """A second worker of a name claims it once the first has ended."""
    first = claim(leases, "host")
    claimed: list[Claim] = []
    with capture_logs() as logs:
        second = threading.Thread(target=lambda: claimed.append(claim(leases, "host")))
        second.start()
        deadline = time.monotonic() + PATIENCE
        while not logs:
            assert time.monotonic() < deadline
        assert logs[0]["executor"] == "host"
        assert claimed == []
        first.release()
        second.join(PATIENCE)
    assert claimed[0].held()
    claimed[0].release()


def test_claims_of_different_names_do_not_wait(leases: Leases) -> None:
    """Workers of different names run at the same time."""
    claims = [claim(leases, name) for name in ("one", "two")]
    assert all(claimed.held() for claimed in claims)
    for claimed in claims:
        claimed.release()


@pytest.mark.parametrize("name", ["../../../outside", "a/b", "..", "host:1 (a)", "hôte", "a\0b"])
def test_lock_file_of_any_name_is_in_the_workers_directory(
    tmp_path: Path, files: Leases, name: str
) -> None:
    """No name leads out of the directory, and each has a file of its own."""
    claims = [claim(files, executor) for executor in (name, "ab")]
    assert {lock_file(claimed).parent for claimed in claims} == {tmp_path / "workers"}
    assert len(list((tmp_path / "workers").iterdir())) == 2
    for claimed in claims:
        claimed.release()


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_claim_refuses_an_empty_or_long_name(tmp_path: Path, files: Leases, name: str) -> None:
    """The error is InvalidInput, and no file is created."""
    with pytest.raises(InvalidInput, match="executor"):
        claim(files, name)
    assert list(tmp_path.iterdir()) == []


def test_claim_is_not_held_after_its_file_is_deleted(files: Leases) -> None:
    """Another worker can claim the name."""
    first = claim(files, "host")
    lock_file(first).unlink()
    assert not first.held()
    second = claim(files, "host")
    assert second.held()
    assert not first.held()
    first.release()
    second.release()


def test_requeue_orphaned_keeps_the_columns_of_the_operation(
    leases: Leases, queue: Queue, takeover: Takeover
) -> None:
    """An operation of a dead worker is queued again with its priority, partition and version."""
    operation = queue.add("colours", priority=7)
    assert queue.take("dead") == [operation]
    die(leases, "dead")
    assert takeover.requeue_orphaned() == [operation]
    state = queue.state(operation)
    assert (state.status, state.queue_name, state.priority) == ("ENQUEUED", QUEUE, 7)
    assert (state.queue_partition_key, state.app_version) == ("colours", APPLICATION_VERSION)
    assert takeover.requeue_orphaned() == []


def test_requeued_operation_runs_before_later_ones(
    leases: Leases, queue: Queue, takeover: Takeover
) -> None:
    """It runs before operations of its model that were accepted later."""
    first, second = (queue.add("colours", priority=number) for number in (1, 2))
    queue.take("dead")
    die(leases, "dead")
    assert queue.take("own") == []  # the model is blocked
    takeover.requeue_orphaned()
    assert queue.take("own") == [first]
    assert queue.take("own") == []
    assert queue.state(second).status == "ENQUEUED"


def test_operations_of_living_workers_are_not_requeued(
    leases: Leases, queue: Queue, takeover: Takeover
) -> None:
    """Operations of this worker and of other living workers stay assigned."""
    operations = [queue.add("colours"), queue.add("shapes")]
    assert queue.take("own") == operations
    other = queue.add("sounds")
    queue.take("other")
    living = claim(leases, "other")
    assert takeover.requeue_orphaned() == []
    assert {queue.state(operation).status for operation in (*operations, other)} == {"PENDING"}
    living.release()
    assert takeover.requeue_orphaned() == [other]


@pytest.mark.parametrize("repository", ["directory"], indirect=True)
def test_worker_without_lock_file_keeps_its_operations(queue: Queue, takeover: Takeover) -> None:
    """The error is logged once, with the file to create if the worker is dead."""
    operation = queue.add("colours")
    queue.take("elsewhere")
    with capture_logs() as logs:
        assert takeover.requeue_orphaned() == takeover.requeue_orphaned() == []
    (line,) = logs
    assert line["executor"] == "elsewhere"
    Path(line["file"]).touch()
    assert takeover.requeue_orphaned() == [operation]


def test_operation_cancelled_during_requeue_stays_cancelled(
    leases: Leases, queue: Queue, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel between the read and the requeue wins."""
    operation = queue.add("colours")
    queue.take("dead")
    die(leases, "dead")
    database = queue.client._sys_db
    requeue = database.reenqueue_for_recovery

    def late(identifier: str, executor_ids: list[str], queue_name: str) -> bool:
        queue.client.cancel_workflow(identifier)
        return requeue(identifier, executor_ids, queue_name)

    monkeypatch.setattr(database, "reenqueue_for_recovery", late)
    assert takeover.requeue_orphaned() == []
    assert queue.state(operation).status == "CANCELLED"


def test_operation_that_another_worker_took_over_is_not_requeued(
    leases: Leases, queue: Queue, own: Claim, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If two workers see an orphaned operation, one requeues it, and its next worker keeps it."""
    operation = queue.add("colours")
    queue.take("dead")
    die(leases, "dead")
    try_claim = leases.executors.try_claim
    other = Takeover(own, queue.client, running=())

    def late(name: str) -> Lease | None:
        monkeypatch.setattr(leases.executors, "try_claim", try_claim)
        assert other.requeue_orphaned() == [operation]
        assert queue.take("living") == [operation]
        return try_claim(name)

    monkeypatch.setattr(leases.executors, "try_claim", late)
    assert takeover.requeue_orphaned() == []
    state = queue.state(operation)
    assert (state.status, state.executor_id) == ("PENDING", "living")


def test_recover_requeues_operations_of_another_version(queue: Queue, takeover: Takeover) -> None:
    """They wait for a worker of that version, and do not block their model."""
    old = queue.add("colours", version="another")
    assert queue.take("own", version="another") == [old]
    new = queue.add("colours", priority=2)
    assert queue.take("own") == []
    assert takeover.recover() == [old]
    assert queue.take("own") == [new]
    assert queue.state(old).status == "ENQUEUED"


def test_not_running_needs_two_checks_in_a_row(queue: Queue, own: Claim) -> None:
    """An operation that is assigned but does not run is returned at the second check."""
    running: set[str] = set()
    takeover = Takeover(own, queue.client, running)
    runs, lost = queue.add("colours"), queue.add("shapes")
    queue.take("own")
    running.add(runs)
    assert takeover.not_running() == set()
    assert takeover.not_running() == {lost}
    running.add(lost)
    assert takeover.not_running() == set()


def test_watch_ends_if_an_operation_is_not_running(
    queue: Queue, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker exits, so that the next worker runs the operation."""
    monkeypatch.setattr(executors, "CHECK_SECONDS", 0.0)
    lost = queue.add("colours")
    queue.take("own")
    assert lost in takeover.watch()


@pytest.mark.parametrize("repository", ["directory"], indirect=True)
def test_watch_ends_if_the_lock_file_is_deleted(
    own: Claim, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker exits, because other workers assume that it is dead."""
    monkeypatch.setattr(executors, "CHECK_SECONDS", 0.0)
    lock_file(own).unlink()
    assert str(lock_file(own)) in takeover.watch()


@pytest.mark.parametrize("repository", ["bucket with PostgreSQL"], indirect=True)
def test_watch_ends_if_the_connection_of_the_lease_is_lost(
    own: Claim,
    takeover: Takeover,
    repository: tuple[Location, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker exits, because other workers assume that it is dead."""
    monkeypatch.setattr(executors, "CHECK_SECONDS", 0.0)
    with psycopg.connect(repository[1], autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'topwork locks'"
        )
    assert "the lock of this worker's name was lost" in takeover.watch()
    assert not own.held()


def test_lock_model_excludes_others_of_the_same_model(leases: Leases) -> None:
    """The lock is released at the end of the block; other models are not locked."""
    with lock_model(leases, "colours") as check:
        assert leases.models.try_claim("colours") is None
        with lock_model(leases, "shapes"):
            pass
        check()
    lease = leases.models.try_claim("colours")
    assert lease is not None
    lease.release()


def test_model_and_executor_of_one_name_do_not_wait(leases: Leases) -> None:
    """They are different locks."""
    claimed = claim(leases, "colours")
    with lock_model(leases, "colours"):
        assert claimed.held()
    claimed.release()


def test_lock_files_are_those_of_earlier_releases(tmp_path: Path, files: Leases) -> None:
    """Workers of earlier releases, beside new ones, lock the same files."""
    claimed = claim(files, "a/b")
    with lock_model(files, "colours"):
        for name in ("a%2Fb.lock", "models/colours.lock"):
            with (tmp_path / "workers" / name).open("r+") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    claimed.release()


def test_workers_of_two_buckets_with_one_database_do_not_take_over_the_living(
    leases: Leases, repository: tuple[Location, str], queue: Queue
) -> None:
    """A living worker is known to all that share its queue, whatever its bucket."""
    location = repository[0] if isinstance(repository[0], Path) else "s3://bucket/other"
    operation = queue.add("colours")
    queue.take("first")
    first = claim(leases, "first")
    second = claim(Leases(location, repository[1]), "second")
    assert Takeover(second, queue.client, running=()).requeue_orphaned() == []
    first.release()
    assert Takeover(second, queue.client, running=()).requeue_orphaned() == [operation]
    second.release()
