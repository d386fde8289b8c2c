"""Operations are kept from the moment they are accepted, whether or not a worker runs."""

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
from topwork.bundle.files import write_file
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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a database; no worker ever looks at it."""
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Yield the event loop that the operations belong to."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def operations(root: Path, runner: asyncio.Runner) -> Iterator[Operations]:
    """Yield connected operations."""
    made = Operations(database_url(root), Repository(root))
    runner.run(made.start())
    yield made
    runner.run(made.aclose())


EVERY = OperationFilter(attributes={})
NOW = datetime.now(UTC)


def job(label: str = "violet", model: str = "colours") -> Job:
    """Return a job that no worker will do."""
    uploads = (Upload(name="a photo", digest="0" * 64),)
    return Job(kind="add_class", model=model, label=label, uploads=uploads, accepted=time.time())


def new_id() -> str:
    """Return a request id that nobody used."""
    return str(uuid.uuid4())


def test_the_same_id_is_the_same_operation(operations: Operations, runner: asyncio.Runner) -> None:
    """Many calls at once with one id are one operation."""
    request_id = new_id()

    async def scenario() -> tuple[set[str], int]:
        calls = (operations.submit(job(), request_id) for _ in range(5))
        made = await asyncio.gather(*calls)
        listed = await operations.list(EVERY, offset=0, limit=1000)
        return {one.id for one in made}, sum(one.id == request_id for one in listed)

    assert runner.run(scenario()) == ({request_id}, 1)


@pytest.mark.parametrize(("label", "model"), [("indigo", "colours"), ("violet", "others")])
def test_an_id_is_not_used_for_something_else(
    operations: Operations, runner: asyncio.Runner, label: str, model: str
) -> None:
    """An id that was used for another label or model is AlreadyExists; the first stays."""
    request_id = new_id()

    async def scenario() -> str:
        await operations.submit(job(), request_id)
        with pytest.raises(AlreadyExists, match=f"not add_class '{label}'") as caught:
            await operations.submit(job(label, model), request_id)
        assert caught.value.reason == "REQUEST_ID_REUSED"
        return (await operations.get(request_id)).subject.label

    assert runner.run(scenario()) == "violet"


def test_one_id_with_two_labels_at_once_is_one_operation(
    operations: Operations, runner: asyncio.Runner
) -> None:
    """Of calls that race with one id and different labels one wins, the others are told so."""
    request_id = new_id()

    async def scenario() -> list[object]:
        labels = [f"label-{number}" for number in range(5)]
        calls = (operations.submit(job(label), request_id) for label in labels)
        return list(await asyncio.gather(*calls, return_exceptions=True))

    ends = runner.run(scenario())
    assert sum(isinstance(end, AlreadyExists) for end in ends) == 4


def test_an_unknown_operation_is_not_found(operations: Operations, runner: asyncio.Runner) -> None:
    """Get, cancel, delete, wait and watch of what is not there are NotFound, and name it."""

    async def watched() -> None:
        async for _ in operations.watch("nothing"):
            pass

    for call in (
        operations.get("nothing"),
        operations.cancel("nothing"),
        operations.delete("nothing"),
        operations.wait("nothing", 1.0),
        watched(),
    ):
        with pytest.raises(NotFound) as caught:
            runner.run(call)
        assert caught.value.resource == "operations/nothing"


def test_an_accepted_operation_waits(operations: Operations, runner: asyncio.Runner) -> None:
    """Before a worker takes it up an operation is queued, and says what it is about."""
    before = time.time()
    made = runner.run(operations.submit(job("indigo"), new_id()))
    assert str(made.subject) == "add_class 'indigo' of 'colours'"
    assert made.progress.stage == "queued"
    assert (made.outcome, made.ended) == (None, None)
    assert before <= made.created.timestamp() <= time.time()


def test_pages_hold_every_operation_once_oldest_first(
    operations: Operations, runner: asyncio.Runner
) -> None:
    """Pages of any size, put together, are the whole list in the order of acceptance."""

    async def scenario() -> None:
        made = [(await operations.submit(job(), new_id())).id for _ in range(7)]
        whole = [one.id for one in await operations.list(EVERY, offset=0, limit=1000)]
        assert whole[-7:] == made
        for size in (1, 3, 1000):
            paged: list[str] = []
            while page := await operations.list(EVERY, offset=len(paged), limit=size):
                paged += [one.id for one in page]
            assert paged == whole

    runner.run(scenario())


def test_waiting_ends_with_its_time(operations: Operations, runner: asyncio.Runner) -> None:
    """Waiting for an operation that does not end returns its state when the time is over."""

    async def scenario() -> None:
        made = await operations.submit(job(), new_id())
        for seconds in (0.1, 0.0):
            assert await operations.wait(made.id, seconds) == made

    runner.run(scenario())


def test_a_cancelled_operation_is_finished(operations: Operations, runner: asyncio.Runner) -> None:
    """Cancelling ends a waiting operation; whoever watches it is told of the two states only."""
    looks = 0
    looked_often = asyncio.Event()

    def count(_: OperationState) -> None:
        nonlocal looks
        looks += 1
        if looks == 4:
            looked_often.set()

    async def scenario() -> None:
        made = await operations.submit(job(), new_id())

        async def watch() -> list[OperationState]:
            return [state async for state in operations.watch(made.id, count)]

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(looked_often.wait(), 60)
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


def test_only_a_finished_operation_is_forgotten(
    operations: Operations, runner: asyncio.Runner
) -> None:
    """Deleting is NotReady before the end; after it the operation is gone."""

    async def scenario() -> None:
        made = await operations.submit(job(), new_id())
        with pytest.raises(NotReady, match="cancel it first"):
            await operations.delete(made.id)
        await operations.cancel(made.id)
        await operations.delete(made.id)
        with pytest.raises(NotFound):
            await operations.get(made.id)

    runner.run(scenario())


def test_operations_outlive_the_process(
    root: Path, operations: Operations, runner: asyncio.Runner
) -> None:
    """Whoever connects to the database later finds what was accepted before."""

    async def scenario() -> None:
        made = await operations.submit(job("indigo"), new_id())
        later = Operations(database_url(root), Repository(root))
        await later.start()
        try:
            assert await later.get(made.id) == made
        finally:
            await later.aclose()

    runner.run(scenario())


def test_nothing_stored_is_a_pickle(
    root: Path, operations: Operations, runner: asyncio.Runner
) -> None:
    """A job is stored as JSON text, which no reader can be made to run."""
    request_id = new_id()
    upload = Upload(name=f"photo of {request_id}", digest="0" * 64)
    runner.run(operations.submit(replace(job(), uploads=(upload,)), request_id))
    stored = b"".join(path.read_bytes() for path in sorted(root.glob("operations.sqlite*")))
    assert f'"name":"{upload.name}"'.encode() in stored


@pytest.fixture
def few(root: Path, runner: asyncio.Runner) -> Iterator[Operations]:
    """Yield operations of which a model may have two."""
    limits = ServerLimits(max_pending_operations=2)
    made = Operations(database_url(root), Repository(root), limits)
    runner.run(made.start())
    yield made
    runner.run(made.aclose())


def test_a_model_has_only_so_many_unfinished_operations(
    few: Operations, runner: asyncio.Runner
) -> None:
    """One too many is Overloaded; other models' are not, nor what comes later."""
    model = "crowded"
    first = new_id()

    async def scenario() -> list[OperationState | BaseException]:
        await few.submit(job("a", model), first, size=30)
        calls = (few.submit(job("b", model), new_id(), size=12) for _ in range(4))
        ends = await asyncio.gather(*calls, return_exceptions=True)
        await few.submit(job("a", "roomy"), new_id())
        await few.cancel(first)
        assert await few.pending_bytes(model) == 12
        await few.submit(job("c", model), new_id())
        return ends

    refused = [end for end in runner.run(scenario()) if isinstance(end, Overloaded)]
    assert len(refused) == 3
    assert {one.reason for one in refused} == {"TOO_MANY_OPERATIONS"}
    assert "model 'crowded' has 2 unfinished operations, which is the limit" in str(refused[0])


def test_twenty_watches_cost_one_query_a_look(few: Operations, runner: asyncio.Runner) -> None:
    """All who watch share each look at the database, which has one statement for what waits."""
    looks: Counter[str] = Counter()
    enough = asyncio.Event()

    def count(operation: OperationState) -> None:
        looks[operation.id] += 1
        if looks.total() >= 200:
            enough.set()

    async def scenario() -> int:
        made = [await few.submit(job("a", f"many {number}"), new_id()) for number in range(2)]
        with statements.noted() as noted:
            waiting = [
                asyncio.create_task(few.wait(made[number % 2].id, 60.0, count))
                for number in range(20)
            ]
            await asyncio.wait_for(enough.wait(), 60)
        for one in made:
            await few.cancel(one.id)
        await asyncio.gather(*waiting)
        return len(noted)

    # Two statements for each of the 20 that begin, then for each look of all of them.
    assert runner.run(scenario()) < 20 * 2 + 10 * 2 + 10


def test_a_watch_ends_with_what_its_check_raises(few: Operations, runner: asyncio.Runner) -> None:
    """Each look is told to the check, also when nothing changes: rights may be withdrawn."""
    looks: list[OperationState] = []

    def check(operation: OperationState) -> None:
        looks.append(operation)
        if len(looks) == 3:
            raise Unauthenticated("no longer known")

    async def scenario() -> None:
        submitted = await few.submit(job("a", "watched"), new_id())
        with pytest.raises(Unauthenticated):
            await few.wait(submitted.id, 60.0, check)
        looks.clear()
        watch = few.watch(submitted.id, check)
        assert await anext(watch) == looks[0]
        with pytest.raises(Unauthenticated):
            await anext(watch)

    runner.run(scenario())
    assert all(look == looks[0] for look in looks)


def test_only_what_is_wanted_is_listed(operations: Operations, runner: asyncio.Runner) -> None:
    """Operations are chosen by what they are about and by whether they are finished."""
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
            return [one.id for one in await operations.list(wanted, offset=0, limit=10)]

        assert await listed() == [first.id, second.id, third.id]
        assert await listed(label="b") == [second.id, third.id]
        assert await listed(kind="remove_class") == [third.id]
        assert await listed(validate_only=False) == [first.id, second.id]
        assert await listed(done=True) == [second.id]
        assert await listed(done=False, label="b") == [third.id]
        assert await listed(label="c") == []

    runner.run(scenario())


def test_images_of_unfinished_operations_are_needed(tmp_path: Path) -> None:
    """What gc must spare are the images of operations that wait, and of no others."""

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
def test_a_cancel_that_comes_too_late_is_none(
    stored: bool,
    moved: bool,
    revision: int | None,
    operations: Operations,
    runner: asyncio.Runner,
    root: Path,
) -> None:
    """It is too late once the result is stored and the serving pointer has moved, not before."""
    request_id, model = new_id(), f"model-{stored}-{moved}".lower()
    move = Move(revision=7, previous=6, why="add_class", operation=request_id, time=NOW)
    serving = ServingState(revision=7, moves=(move,) if moved else ())
    write_file(Repository(root).serving_file(model), to_json(serving))
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
