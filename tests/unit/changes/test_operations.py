"""Durable operations: stored before they are acknowledged, with or without a worker."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dbos import DBOSPortableJSONSerializer
from support import statements

from topwork.bundle.documents import to_json
from topwork.bundle.serving import Move, ServingState
from topwork.bundle.store import Repository
from topwork.changes.database import database_url, pending_images
from topwork.changes.jobs import Job, Upload
from topwork.changes.operations import Operations
from topwork.changes.queue import RESULT, OperationFilter
from topwork.changes.rows import OperationState
from topwork.errors import (
    AlreadyExists,
    NotFound,
    NotReady,
    Overloaded,
    Unauthenticated,
)
from topwork.limits import ServerLimits
from topwork.storage.files import write_file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository's directory, without a worker."""
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Yield the event loop of the operations."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def operations(root: Path, runner: asyncio.Runner) -> Iterator[Operations]:
    """Yield connected operations."""
    made = Operations(database_url(root), Repository(root))
    runner.run(made.start())
    yield made
    runner.run(made.aclose())


ALL = OperationFilter(attributes={})
NOW = datetime.now(UTC)


def job(label: str = "violet", model: str = "colours") -> Job:
    """Return a job of AddClass."""
    uploads = (Upload(name="a photo", digest="0" * 64),)
    return Job(kind="add_class", model=model, label=label, uploads=uploads, accepted=time.time())


def new_id() -> str:
    """Return an unused request id."""
    return str(uuid.uuid4())


def test_concurrent_calls_with_an_id_are_one_operation(
    operations: Operations, runner: asyncio.Runner
) -> None:
    """All of them return the same operation."""
    request_id = new_id()

    async def scenario() -> tuple[set[str], int]:
        calls = (operations.submit(job(), request_id) for _ in range(5))
        made = await asyncio.gather(*calls)
        listed = await operations.list(ALL, offset=0, limit=1000)
        return (
            {operation.id for operation in made},
            sum(operation.id == request_id for operation in listed),
        )

    assert runner.run(scenario()) == ({request_id}, 1)


@pytest.mark.parametrize(("label", "model"), [("indigo", "colours"), ("violet", "others")])
def test_id_of_another_request_is_refused(
    operations: Operations, runner: asyncio.Runner, label: str, model: str
) -> None:
    """An id that was used for another label or model is AlreadyExists; the first is unchanged."""
    request_id = new_id()

    async def scenario() -> str:
        await operations.submit(job(), request_id)
        with pytest.raises(AlreadyExists, match=f"not add_class '{label}'") as caught:
            await operations.submit(job(label, model), request_id)
        assert caught.value.reason == "REQUEST_ID_REUSED"
        return (await operations.get(request_id)).subject.label

    assert runner.run(scenario()) == "violet"


def test_concurrent_calls_with_an_id_and_different_labels_are_one_operation(
    operations: Operations, runner: asyncio.Runner
) -> None:
    """One of the calls succeeds, and the others are AlreadyExists."""
    request_id = new_id()

    async def scenario() -> list[object]:
        labels = [f"label-{number}" for number in range(5)]
        calls = (operations.submit(job(label), request_id) for label in labels)
        return list(await asyncio.gather(*calls, return_exceptions=True))

    results = runner.run(scenario())
    assert sum(isinstance(result, AlreadyExists) for result in results) == 4


def test_unknown_operation_is_not_found(operations: Operations, runner: asyncio.Runner) -> None:
    """Get, cancel, delete, wait and watch raise NotFound with the operation's name."""

    async def watch() -> None:
        async for _ in operations.watch("nothing"):
            pass

    for call in (
        operations.get("nothing"),
        operations.cancel("nothing"),
        operations.delete("nothing"),
        operations.wait("nothing", 1.0),
        watch(),
    ):
        with pytest.raises(NotFound) as caught:
            runner.run(call)
        assert caught.value.resource == "operations/nothing"


def test_submitted_operation_is_queued(operations: Operations, runner: asyncio.Runner) -> None:
    """Before a worker runs it, an operation has its subject and no outcome."""
    before = time.time()
    made = runner.run(operations.submit(job("indigo"), new_id()))
    assert str(made.subject) == "add_class 'indigo' of 'colours'"
    assert made.progress.stage == "queued"
    assert (made.outcome, made.ended) == (None, None)
    assert before <= made.created.timestamp() <= time.time()


def test_list_pages_are_complete_and_oldest_first(
    operations: Operations, runner: asyncio.Runner
) -> None:
    """Pages of any size together are the whole list in the order of acceptance."""

    async def scenario() -> None:
        made = [(await operations.submit(job(), new_id())).id for _ in range(7)]
        whole = [operation.id for operation in await operations.list(ALL, offset=0, limit=1000)]
        assert whole[-7:] == made
        for size in (1, 3, 1000):
            paged: list[str] = []
            while page := await operations.list(ALL, offset=len(paged), limit=size):
                paged += [operation.id for operation in page]
            assert paged == whole

    runner.run(scenario())


def test_wait_returns_the_state_after_its_timeout(
    operations: Operations, runner: asyncio.Runner
) -> None:
    """An unfinished operation is returned after the timeout, also after 0 seconds."""

    async def scenario() -> None:
        made = await operations.submit(job(), new_id())
        for seconds in (0.1, 0.0):
            assert await operations.wait(made.id, seconds) == made

    runner.run(scenario())


def test_watch_yields_only_changed_states(operations: Operations, runner: asyncio.Runner) -> None:
    """A watch of an operation that is cancelled in the queue yields two states."""
    reads = 0
    read_often = asyncio.Event()

    def count(_: OperationState) -> None:
        nonlocal reads
        reads += 1
        if reads == 4:
            read_often.set()

    async def scenario() -> None:
        made = await operations.submit(job(), new_id())

        async def watch() -> list[OperationState]:
            return [state async for state in operations.watch(made.id, count)]

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(read_often.wait(), 60)
        await operations.cancel(made.id)
        await operations.cancel(made.id)
        first, last = await asyncio.wait_for(watching, 60)
        assert first == made
        assert last == await operations.get(made.id)
        assert last.progress.stage == "done"
        assert last.outcome is not None
        assert last.outcome.failure is not None
        assert last.outcome.failure.kind == "Cancelled"

    runner.run(scenario())


def test_delete_needs_a_finished_operation(operations: Operations, runner: asyncio.Runner) -> None:
    """Delete is NotReady for an unfinished operation; a finished operation is deleted."""

    async def scenario() -> None:
        made = await operations.submit(job(), new_id())
        with pytest.raises(NotReady, match="cancel it first"):
            await operations.delete(made.id)
        await operations.cancel(made.id)
        await operations.delete(made.id)
        with pytest.raises(NotFound):
            await operations.get(made.id)

    runner.run(scenario())


def test_operations_survive_a_restart(
    root: Path, operations: Operations, runner: asyncio.Runner
) -> None:
    """A server that connects later finds the operations accepted before."""

    async def scenario() -> None:
        made = await operations.submit(job("indigo"), new_id())
        later = Operations(database_url(root), Repository(root))
        await later.start()
        try:
            assert await later.get(made.id) == made
        finally:
            await later.aclose()

    runner.run(scenario())


def test_job_is_stored_as_json(root: Path, operations: Operations, runner: asyncio.Runner) -> None:
    """A job is stored as JSON text, not as a pickle, which could run code."""
    request_id = new_id()
    upload = Upload(name=f"photo of {request_id}", digest="0" * 64)
    runner.run(operations.submit(replace(job(), uploads=(upload,)), request_id))
    stored = b"".join(path.read_bytes() for path in sorted(root.glob("operations.sqlite*")))
    assert f'"name":"{upload.name}"'.encode() in stored


@pytest.fixture
def few(root: Path, runner: asyncio.Runner) -> Iterator[Operations]:
    """Yield operations with a limit of two unfinished ones per model."""
    limits = ServerLimits(max_pending_operations=2)
    made = Operations(database_url(root), Repository(root), limits)
    runner.run(made.start())
    yield made
    runner.run(made.aclose())


def test_submit_at_the_limit_of_unfinished_operations_is_overloaded(
    few: Operations, runner: asyncio.Runner
) -> None:
    """Other models, and later calls after an operation has finished, are accepted."""
    model = "crowded"
    first = new_id()

    async def scenario() -> list[OperationState | BaseException]:
        await few.submit(job("a", model), first, size=30)
        calls = (few.submit(job("b", model), new_id(), size=12) for _ in range(4))
        results = await asyncio.gather(*calls, return_exceptions=True)
        await few.submit(job("a", "idle"), new_id())
        await few.cancel(first)
        assert await few.pending_bytes(model) == 12
        await few.submit(job("c", model), new_id())
        return results

    refused = [result for result in runner.run(scenario()) if isinstance(result, Overloaded)]
    assert len(refused) == 3
    assert {error.reason for error in refused} == {"TOO_MANY_OPERATIONS"}
    assert "model 'crowded' has 2 unfinished operations, which is the limit" in str(refused[0])


@pytest.mark.slow
def test_twenty_waits_share_one_query_per_poll(few: Operations, runner: asyncio.Runner) -> None:
    """Each wait reads the operation once; after that all share the queries of the poller."""
    reads: Counter[str] = Counter()
    enough = asyncio.Event()

    def count(operation: OperationState) -> None:
        reads[operation.id] += 1
        if reads.total() >= 200:
            enough.set()

    async def scenario() -> int:
        made = [await few.submit(job("a", f"many {number}"), new_id()) for number in range(2)]
        with statements.noted() as noted:
            waiting = [
                asyncio.create_task(few.wait(made[number % 2].id, 60.0, count))
                for number in range(20)
            ]
            await asyncio.wait_for(enough.wait(), 60)
        for operation in made:
            await few.cancel(operation.id)
        await asyncio.gather(*waiting)
        return len(noted)

    # One statement for each of the 20 waits, and for each of about 10 polls.
    assert runner.run(scenario()) < 20 + 10 + 10


def test_watch_ends_with_the_error_of_its_check(few: Operations, runner: asyncio.Runner) -> None:
    """The check sees each read state, also unchanged ones: rights may be withdrawn."""
    reads: list[OperationState] = []

    def check(operation: OperationState) -> None:
        reads.append(operation)
        if len(reads) == 3:
            raise Unauthenticated("no longer known")

    async def scenario() -> None:
        submitted = await few.submit(job("a", "watched"), new_id())
        with pytest.raises(Unauthenticated):
            await few.wait(submitted.id, 60.0, check)
        reads.clear()
        watch = few.watch(submitted.id, check)
        assert await anext(watch) == reads[0]
        with pytest.raises(Unauthenticated):
            await anext(watch)

    runner.run(scenario())
    assert all(state == reads[0] for state in reads)


def test_list_filters_by_subject_and_state(operations: Operations, runner: asyncio.Runner) -> None:
    """Filters are the fields of the subject, and finished or unfinished."""
    model = "only-here"

    async def scenario() -> None:
        first = await operations.submit(job("a", model), new_id())
        second = await operations.submit(job("b", model), new_id())
        third = await operations.submit(
            replace(job("b", model), kind="remove_class", validate_only=True), new_id()
        )
        await operations.cancel(second.id)

        async def listed(done: bool | None = None, **attributes: str | bool) -> list[str]:
            wanted = OperationFilter(attributes={"model": model, **attributes}, done=done)
            return [operation.id for operation in await operations.list(wanted, offset=0, limit=10)]

        assert await listed() == [first.id, second.id, third.id]
        assert await listed(label="b") == [second.id, third.id]
        assert await listed(kind="remove_class") == [third.id]
        assert await listed(validate_only=False) == [first.id, second.id]
        assert await listed(done=True) == [second.id]
        assert await listed(done=False, label="b") == [third.id]
        assert await listed(label="c") == []

    runner.run(scenario())


def test_pending_images_are_those_of_unfinished_operations(tmp_path: Path) -> None:
    """Only the images of unfinished operations must be spared by gc."""

    async def scenario() -> None:
        waiting = Operations(database_url(tmp_path), Repository(tmp_path))
        await waiting.start()
        try:
            for digit in "ab":
                upload = Upload(name="a photo", digest=digit * 64)
                made = await waiting.submit(replace(job(), uploads=(upload,)), new_id())
            await waiting.cancel(made.id)
        finally:
            await waiting.aclose()

    asyncio.run(scenario())
    assert pending_images(database_url(tmp_path)) == {"a" * 64}


@pytest.mark.parametrize(
    ("stored", "moved", "revision"), [(True, True, 7), (True, False, None), (False, True, None)]
)
def test_late_cancel_keeps_the_result(
    stored: bool,
    moved: bool,
    revision: int | None,
    operations: Operations,
    runner: asyncio.Runner,
    root: Path,
) -> None:
    """A cancel is late once the result is stored and the serving pointer has moved."""
    request_id, model = new_id(), f"model-{stored}-{moved}".lower()
    move = Move(revision=7, previous=6, why="add_class", operation=request_id, time=NOW)
    serving = ServingState(revision=7, moves=(move,) if moved else ())
    write_file((Repository(root).root / Repository(root).serving_key(model)), to_json(serving))
    runner.run(operations.submit(job(model=model), request_id))
    serializer = DBOSPortableJSONSerializer()
    row = request_id, RESULT, serializer.serialize({"revision": 7}), serializer.name()
    with closing(sqlite3.connect(root / "operations.sqlite")) as database:
        if stored:
            database.execute(
                "INSERT INTO workflow_events (workflow_uuid, key, value, serialization) "
                "VALUES (?, ?, ?, ?)",
                row,
            )
        database.commit()
    runner.run(operations.cancel(request_id))
    outcome = runner.run(operations.get(request_id)).outcome
    assert outcome is not None
    assert (outcome.result.revision if outcome.result is not None else None) == revision
    assert (outcome.failure is None) == (revision is not None)
