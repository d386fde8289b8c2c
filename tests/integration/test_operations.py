"""Operations: watched, waited for, listed, cancelled, deleted, and done whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from support import servers
from support.pictures import pictures
from support.servers import Running, Teach, failure, fields

from topwork import Client, progress, result
from topwork.v1 import change_pb2 as change_pb

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
MANY = (VIOLETS * 34)[:400]
"""Mostly duplicates: long to embed, quick to solve. As many as an upload may have."""

STAGES = [
    f"CHANGE_STAGE_{name}" for name in ("QUEUED", "EMBEDDING", "SOLVING", "PUBLISHING", "DONE")
]


@pytest.fixture(scope="module")
def waiting(idle: Running) -> Iterator[Client]:
    """Yield a client of a server whose operations wait."""
    with Client(idle.address) as made:
        yield made


@pytest.fixture(scope="module")
def queue(idle: Running) -> Iterator[operations_pb2_grpc.OperationsStub]:
    """Yield the operations of the same."""
    with grpc.insecure_channel(idle.address) as channel:
        yield operations_pb2_grpc.OperationsStub(channel)


def stage(operation: operations_pb2.Operation) -> str:
    """Return the name of the stage that an operation is in."""
    return change_pb.ChangeStage.Name(progress(operation).stage)


def get(stub: operations_pb2_grpc.OperationsStub, name: str) -> operations_pb2.Operation:
    """Return an operation."""
    return stub.GetOperation(operations_pb2.GetOperationRequest(name=name))


def cancel(stub: operations_pb2_grpc.OperationsStub, name: str) -> None:
    """Cancel an operation."""
    stub.CancelOperation(operations_pb2.CancelOperationRequest(name=name))


def delete(stub: operations_pb2_grpc.OperationsStub, name: str) -> None:
    """Delete an operation."""
    stub.DeleteOperation(operations_pb2.DeleteOperationRequest(name=name))


def wait(
    stub: operations_pb2_grpc.OperationsStub, name: str, seconds: float
) -> operations_pb2.Operation:
    """Wait for an operation."""
    timeout = Duration(nanos=round(seconds % 1 * 1e9), seconds=int(seconds))
    return stub.WaitOperation(operations_pb2.WaitOperationRequest(name=name, timeout=timeout))


def listed(stub: operations_pb2_grpc.OperationsStub, size: int) -> list[str]:
    """Return the names of all operations, a page of ``size`` at a time."""
    names: list[str] = []
    token = ""
    while True:
        page = stub.ListOperations(
            operations_pb2.ListOperationsRequest(page_size=size, page_token=token)
        )
        names += [one.name for one in page.operations]
        if not (token := page.next_page_token):
            return names


def test_a_watched_operation_shows_its_progress(client: Client, model: str) -> None:
    """States come in the order of the stages, embedding counts up, the last is the finished one."""
    accepted = client.add_class(model, "violet", MANY)
    assert not accepted.done
    states = list(client.watch(accepted.name))
    seen = [stage(state) for state in states]
    assert seen == sorted(seen, key=STAGES.index)
    counts = [
        (state.done, state.total)
        for state in map(progress, states)
        if state.stage == change_pb.CHANGE_STAGE_EMBEDDING
    ]
    assert {total for _, total in counts} == {400}
    assert counts == sorted(counts)
    assert 0 < counts[0][0] < 400
    assert [state.done for state in states] == [False] * (len(states) - 1) + [True]
    assert seen[-1] == "CHANGE_STAGE_DONE"
    assert result(states[-1]).images_used == 12
    assert len(result(states[-1]).skipped_images) == 388


def test_a_finished_operation_stays_as_it_is(
    client: Client, operations: operations_pb2_grpc.OperationsStub, teach: Teach, model: str
) -> None:
    """Watch, get, wait and cancel of a finished operation all leave and give the same."""
    finished = teach(model, "violet", VIOLETS)
    assert list(client.watch(finished.name)) == [finished]
    assert wait(operations, finished.name, 60) == finished.raw
    cancel(operations, finished.name)
    assert get(operations, finished.name) == finished.raw


def test_waiting_ends_with_the_operation(
    client: Client, operations: operations_pb2_grpc.OperationsStub, model: str
) -> None:
    """WaitOperation, without a timeout too, returns the finished operation."""
    accepted = client.add_class(model, "violet", VIOLETS)
    finished = operations.WaitOperation(
        operations_pb2.WaitOperationRequest(name=accepted.name), timeout=servers.PATIENCE
    )
    assert finished.done
    assert result(finished).revision.revision == 2


def test_waiting_ends_with_its_timeout(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """WaitOperation returns an operation that is not finished when its timeout is over."""
    accepted = waiting.add_class("colours", "violet", VIOLETS)
    state = wait(queue, accepted.name, 0.1)
    assert state.name == accepted.name
    assert (state.done, stage(state)) == (False, "CHANGE_STAGE_QUEUED")
    before, after = (progress(one).elapsed.ToNanoseconds() for one in (accepted, state))
    assert after - before >= 0.1e9


def test_pages_hold_every_operation_once(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """Pages of any size, put together, are all operations in the order of acceptance."""
    made = [waiting.add_class("colours", f"label-{n}", VIOLETS).name for n in range(5)]
    whole = listed(queue, 0)
    assert whole[-5:] == made
    for size in (1, 2, len(whole), 5000):
        assert listed(queue, size) == whole


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"filter": "labels = blue"}, "filter"),
        ({"page_token": "next"}, "page_token"),
        ({"page_size": -1}, "page_size"),
    ],
)
def test_a_listing_that_is_refused(
    queue: operations_pb2_grpc.OperationsStub, request_: dict[str, Any], field: str
) -> None:
    """A filter, a page token that nobody gave and a negative size are INVALID_ARGUMENT."""
    error = failure(lambda: queue.ListOperations(operations_pb2.ListOperationsRequest(**request_)))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", [field])


def test_a_listing_has_what_its_filter_lets_pass(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """Operations are listed by model, label and whether they are finished, in pages too."""
    made = [waiting.add_class("colours", label, VIOLETS).name for label in ("teal", "rust", "teal")]
    cancel(queue, made[0])
    wanted = 'model = "models/colours" AND label = teal'
    assert [one.name for one in waiting.operations(wanted)] == [made[0], made[2]]
    assert [one.name for one in waiting.operations(f"{wanted} AND done = false")] == [made[2]]
    page = queue.ListOperations(operations_pb2.ListOperationsRequest(filter=wanted, page_size=1))
    assert [one.name for one in page.operations] == [made[0]]
    assert page.next_page_token


def test_a_cancelled_operation_ends(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """A cancelled operation is finished with CANCELLED, and whoever watches it is told."""
    accepted = waiting.add_class("colours", "violet", VIOLETS)
    watched = waiting.watch(accepted.name)
    assert not next(watched).done
    cancel(queue, accepted.name)
    (last,) = watched
    assert last.raw == get(queue, accepted.name)
    assert (last.done, last.raw.error.code) == (True, grpc.StatusCode.CANCELLED.value[0])


def test_an_operation_is_cancelled_while_it_runs(
    client: Client, operations: operations_pb2_grpc.OperationsStub, teach: Teach, model: str
) -> None:
    """A running operation that is cancelled ends so, never serves, and lets the next one pass."""
    accepted = client.add_class(model, "violet", MANY)
    for state in client.watch(accepted.name):
        if stage(state) == "CHANGE_STAGE_EMBEDDING":
            cancel(operations, accepted.name)
    assert state.raw.error.code == grpc.StatusCode.CANCELLED.value[0]
    assert client.model(model).serving_revision.revision == 1
    after = result(teach(model, "indigo", VIOLETS)).revision
    assert list(after.labels) == ["amber", "blue", "crimson", "green", "indigo"]
    assert client.model(model).serving_revision == after


def test_only_a_finished_operation_is_deleted(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """DeleteOperation is FAILED_PRECONDITION before the end; then the operation is gone."""
    accepted = waiting.add_class("colours", "violet", VIOLETS)
    assert failure(lambda: delete(queue, accepted.name)).code == "FAILED_PRECONDITION"
    cancel(queue, accepted.name)
    delete(queue, accepted.name)
    assert failure(lambda: get(queue, accepted.name)).code == "NOT_FOUND"
    assert accepted.name not in listed(queue, 0)


def test_what_was_learnt_outlives_its_operation(
    client: Client, operations: operations_pb2_grpc.OperationsStub, teach: Teach, model: str
) -> None:
    """Deleting the operation of a class that was learnt takes nothing from the model."""
    finished = teach(model, "violet", VIOLETS)
    delete(operations, finished.name)
    assert "violet" in client.model(model).serving_revision.labels


@pytest.mark.parametrize(
    ("name", "code"),
    [(f"operations/{uuid.UUID(int=7)}", "NOT_FOUND"), ("violet", "INVALID_ARGUMENT")],
)
@pytest.mark.parametrize("call", ["get", "cancel", "delete", "wait", "watch"])
def test_an_operation_that_is_not_there(
    waiting: Client,
    queue: operations_pb2_grpc.OperationsStub,
    call: str,
    name: str,
    code: str,
) -> None:
    """Whatever is asked of it, an unknown operation is NOT_FOUND, a wrong name INVALID_ARGUMENT."""
    calls = {
        "get": lambda: get(queue, name),
        "cancel": lambda: cancel(queue, name),
        "delete": lambda: delete(queue, name),
        "wait": lambda: wait(queue, name, 1),
        "watch": lambda: list(waiting.watch(name)),
    }
    assert failure(calls[call]).code == code


def test_a_revision_that_is_gone_does_not_hide_the_operations(
    server: Running, teach: Teach, model: str
) -> None:
    """Operations are listed even when an old revision that one of them made was removed."""
    first = teach(model, "violet", VIOLETS)
    teach(model, "indigo", VIOLETS)
    folder = server.repository / "models" / model / "2"
    aside = folder.with_name("removed")
    folder.rename(aside)
    try:
        with (
            servers.running(server.repository, worker=False) as fresh,
            grpc.insecure_channel(fresh.address) as channel,
        ):
            assert first.name in listed(operations_pb2_grpc.OperationsStub(channel), 0)
    finally:
        aside.rename(folder)


def test_a_killed_worker_costs_no_operation(client: Client, server: Running, model: str) -> None:
    """When the worker is killed right after an upload was accepted, the class is learnt once."""
    accepted = client.add_class(model, "violet", MANY)
    killed = server.worker()
    os.kill(killed, signal.SIGKILL)
    *_, finished = client.watch(accepted.name)
    assert result(finished).revision.revision == 2
    assert list(client.model(model).revisions) == [1, 2]
    assert server.worker() != killed
    assert client.classify(model, [VIOLETS[0][1]]).revision == 2
