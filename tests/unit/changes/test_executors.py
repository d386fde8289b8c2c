"""Who is alive, and what happens to the operations of those who are not."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbos import DBOSClient, DBOSPortableJSONSerializer, WorkflowStatus
from structlog.testing import capture_logs

from topwork.changes import executors
from topwork.changes.database import APPLICATION, CHANGE, QUEUE, database_url, prepare
from topwork.changes.executors import Claim, Takeover, alone, claim
from topwork.changes.queue import APPLICATION_VERSION
from topwork.errors import InvalidInput

PATIENCE = 60.0


class Queue:
    """The queue of a repository, and workers that take from it and do nothing."""

    def __init__(self, root: Path) -> None:
        prepare(database_url(root))
        self.client = DBOSClient(
            system_database_url=database_url(root),
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
        """Let a worker take what it may, and return the operations' ids."""
        queue = self.client.retrieve_queue(QUEUE)
        assert queue is not None
        return self.client._sys_db.start_queued_partitioned_workflows(
            queue, executor, version, owner_xid=str(uuid.uuid4())
        )

    def look(self, operation: str) -> WorkflowStatus:
        """Return an operation's state."""
        (found,) = self.client.list_workflows(workflow_ids=[operation])
        return found


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    """Yield an empty queue."""
    made = Queue(tmp_path)
    yield made
    made.client.destroy()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Claim]:
    """Yield the claim of the worker that looks."""
    made = claim(tmp_path, "own")
    yield made
    made.file.close()


@pytest.fixture
def takeover(queue: Queue, own: Claim) -> Takeover:
    """Return what looks for the operations of the dead."""
    return Takeover(own, queue.client, running=())


def die(root: Path, executor: str) -> None:
    """Leave what a worker leaves that was there once."""
    claim(root, executor).file.close()


def test_a_name_is_one_workers_at_a_time(tmp_path: Path) -> None:
    """A second worker of the same name waits until the first has ended, and then has it."""
    first = claim(tmp_path, "host")
    claimed: list[Claim] = []
    with capture_logs() as logs:
        second = threading.Thread(target=lambda: claimed.append(claim(tmp_path, "host")))
        second.start()
        deadline = time.monotonic() + PATIENCE
        while not logs:
            assert time.monotonic() < deadline
        assert logs[0]["executor"] == "host"
        assert claimed == []
        first.file.close()
        second.join(PATIENCE)
    assert claimed[0].held()
    claimed[0].file.close()


def test_other_names_do_not_wait(tmp_path: Path) -> None:
    """Workers of different names work side by side."""
    claims = [claim(tmp_path, name) for name in ("one", "two")]
    assert all(one.held() for one in claims)
    for one in claims:
        one.file.close()


@pytest.mark.parametrize("name", ["../../../outside", "a/b", "..", "host:1 (a)", "hôte", "a\0b"])
def test_any_name_is_a_file_among_the_workers(tmp_path: Path, name: str) -> None:
    """No name leads out of the workers' directory, and each has a file of its own."""
    claims = [claim(tmp_path, one) for one in (name, "ab")]
    assert {one.path.parent for one in claims} == {tmp_path / "workers"}
    assert len(list((tmp_path / "workers").iterdir())) == 2
    for one in claims:
        one.file.close()


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_a_name_that_is_no_files_is_refused(tmp_path: Path, name: str) -> None:
    """An empty name and one that is too long are InvalidInput."""
    with pytest.raises(InvalidInput, match="executor"):
        claim(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_lock_is_not_held(tmp_path: Path) -> None:
    """A worker whose lock file was deleted knows it; its name is free."""
    first = claim(tmp_path, "host")
    first.path.unlink()
    assert not first.held()
    second = claim(tmp_path, "host")
    assert second.held()
    assert not first.held()
    for one in (first, second):
        one.file.close()


def test_what_a_dead_worker_left_is_put_back(
    tmp_path: Path, queue: Queue, takeover: Takeover
) -> None:
    """An operation of a dead worker waits again, with all that it was enqueued with."""
    operation = queue.add("colours", priority=7)
    assert queue.take("dead") == [operation]
    die(tmp_path, "dead")
    assert takeover.put_back() == [operation]
    found = queue.look(operation)
    assert (found.status, found.queue_name, found.priority) == ("ENQUEUED", QUEUE, 7)
    assert (found.queue_partition_key, found.app_version) == ("colours", APPLICATION_VERSION)
    assert takeover.put_back() == []


def test_what_is_put_back_goes_first(tmp_path: Path, queue: Queue, takeover: Takeover) -> None:
    """An operation that is put back comes before those of its model that were accepted later."""
    first, second = (queue.add("colours", priority=number) for number in (1, 2))
    queue.take("dead")
    die(tmp_path, "dead")
    assert queue.take("own") == []  # the model is blocked
    takeover.put_back()
    assert queue.take("own") == [first]
    assert queue.take("own") == []
    assert queue.look(second).status == "ENQUEUED"


def test_the_living_keep_theirs(tmp_path: Path, queue: Queue, takeover: Takeover) -> None:
    """Operations of this worker and of others that live are left alone."""
    operations = [queue.add("colours"), queue.add("shapes")]
    assert queue.take("own") == operations
    other = queue.add("sounds")
    queue.take("other")
    living = claim(tmp_path, "other")
    assert takeover.put_back() == []
    assert {queue.look(one).status for one in (*operations, other)} == {"PENDING"}
    living.file.close()
    assert takeover.put_back() == [other]


def test_an_unknown_worker_may_live(queue: Queue, takeover: Takeover) -> None:
    """Nothing is taken from a worker without a lock file; that is said once, and what to do."""
    operation = queue.add("colours")
    queue.take("elsewhere")
    with capture_logs() as logs:
        assert takeover.put_back() == takeover.put_back() == []
    (said,) = logs
    assert said["executor"] == "elsewhere"
    Path(said["file"]).touch()
    assert takeover.put_back() == [operation]


def test_a_cancel_that_comes_meanwhile_stays(
    tmp_path: Path, queue: Queue, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that is cancelled while it is being put back stays cancelled."""
    operation = queue.add("colours")
    queue.take("dead")
    die(tmp_path, "dead")
    database = queue.client._sys_db
    put_back = database.reenqueue_for_recovery

    def late(identifier: str, executor_ids: list[str], queue_name: str) -> bool:
        queue.client.cancel_workflow(identifier)
        return put_back(identifier, executor_ids, queue_name)

    monkeypatch.setattr(database, "reenqueue_for_recovery", late)
    assert takeover.put_back() == []
    assert queue.look(operation).status == "CANCELLED"


def test_what_another_took_over_meanwhile_is_its_own(
    tmp_path: Path, queue: Queue, own: Claim, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that see a dead worker's operation one puts it back; who does it then keeps it."""
    operation = queue.add("colours")
    queue.take("dead")
    die(tmp_path, "dead")
    lock = executors._locked
    other = Takeover(own, queue.client, running=())

    def late(file: object) -> bool:
        monkeypatch.setattr(executors, "_locked", lock)
        assert other.put_back() == [operation]
        assert queue.take("living") == [operation]
        return lock(file)  # type: ignore[arg-type]  # what is given is passed on

    monkeypatch.setattr(executors, "_locked", late)
    assert takeover.put_back() == []
    found = queue.look(operation)
    assert (found.status, found.executor_id) == ("PENDING", "living")


def test_what_another_version_left_blocks_nobody(queue: Queue, takeover: Takeover) -> None:
    """What a worker of this name and another version left waits for that one; others go on."""
    old = queue.add("colours", version="another")
    assert queue.take("own", version="another") == [old]
    new = queue.add("colours", priority=2)
    assert queue.take("own") == []
    assert takeover.recover() == [old]
    assert queue.take("own") == [new]
    assert queue.look(old).status == "ENQUEUED"


def test_a_stray_is_one_that_nobody_does_twice_in_a_row(queue: Queue, own: Claim) -> None:
    """An operation that is this worker's in the database only is a stray at the second look."""
    running: set[str] = set()
    takeover = Takeover(own, queue.client, running)
    done, stray = queue.add("colours"), queue.add("shapes")
    queue.take("own")
    running.add(done)
    assert takeover.stray() == set()
    assert takeover.stray() == {stray}
    running.add(stray)
    assert takeover.stray() == set()


def test_a_worker_with_a_stray_must_end(
    queue: Queue, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that does not do what the database gave it ends, so that the next one does."""
    monkeypatch.setattr(executors, "LOOK_SECONDS", 0.0)
    stray = queue.add("colours")
    queue.take("own")
    assert stray in takeover.watch()


def test_a_worker_without_its_lock_must_end(
    own: Claim, takeover: Takeover, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose lock file was deleted ends: others take it for dead."""
    monkeypatch.setattr(executors, "LOOK_SECONDS", 0.0)
    own.path.unlink()
    assert str(own.path) in takeover.watch()


def test_one_model_is_changed_by_one_at_a_time(tmp_path: Path) -> None:
    """Who changes a model holds its lock, and no other's, until the change has ended."""
    with alone(tmp_path, "colours"):
        (lock,) = (tmp_path / "workers" / "models").iterdir()
        with lock.open("a") as other:
            assert not executors._locked(other)
        with alone(tmp_path, "shapes"):
            pass
    with lock.open("a") as other:
        assert executors._locked(other)
