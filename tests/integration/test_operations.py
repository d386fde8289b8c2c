"""Operations service: watch, wait, list, cancel, delete, and recovery of a killed worker."""

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
from support.servers import AddClass, Running, failure, fields

from topwork import Client, progress, result
from topwork.v1 import change_pb2 as change_pb

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
MANY = (VIOLETS * 34)[:400]
"""The maximum number of images in an upload; mostly duplicates, slow to embed, quick to solve."""

STAGES = [
    f"CHANGE_STAGE_{name}" for name in ("QUEUED", "EMBEDDING", "SOLVING", "PUBLISHING", "DONE")
]


@pytest.fixture(scope="module")
def waiting(idle: Running) -> Iterator[Client]:
    """Yield a client of a server without a worker."""
    with Client(idle.address) as made:
        yield made


@pytest.fixture(scope="module")
def queue(idle: Running) -> Iterator[operations_pb2_grpc.OperationsStub]:
    """Yield a stub of that server's Operations service."""
    with grpc.insecure_channel(idle.address) as channel:
        yield operations_pb2_grpc.OperationsStub(channel)


def stage(operation: operations_pb2.Operation) -> str:
    """Return the name of an operation's stage."""
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
        names += [operation.name for operation in page.operations]
        if not (token := page.next_page_token):
            return names


def test_watch_yields_progress_until_the_end(client: Client, model: str) -> None:
    """States follow the order of stages, the embedding count grows, the last state is done."""
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


def test_a_finished_operation_does_not_change(
    client: Client, operations: operations_pb2_grpc.OperationsStub, add_class: AddClass, model: str
) -> None:
    """Watch, get, wait and cancel return a finished operation unchanged."""
    finished = add_class(model, "violet", VIOLETS)
    assert list(client.watch(finished.name)) == [finished]
    assert wait(operations, finished.name, 60) == finished.raw
    cancel(operations, finished.name)
    assert get(operations, finished.name) == finished.raw


def test_wait_operation_returns_the_finished_operation(
    client: Client, operations: operations_pb2_grpc.OperationsStub, model: str
) -> None:
    """WaitOperation without a timeout returns the finished operation."""
    accepted = client.add_class(model, "violet", VIOLETS)
    finished = operations.WaitOperation(
        operations_pb2.WaitOperationRequest(name=accepted.name), timeout=servers.TIMEOUT
    )
    assert finished.done
    assert result(finished).revision.revision == 2


def test_wait_operation_returns_after_its_timeout(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """WaitOperation returns an unfinished operation after its timeout."""
    accepted = waiting.add_class("colours", "violet", VIOLETS)
    state = wait(queue, accepted.name, 0.1)
    assert state.name == accepted.name
    assert (state.done, stage(state)) == (False, "CHANGE_STAGE_QUEUED")
    before, after = (progress(seen).elapsed.ToNanoseconds() for seen in (accepted, state))
    assert after - before >= 0.1e9


def test_list_operations_pages_hold_every_operation_once(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """Pages of any size together have all operations in the order of acceptance."""
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
def test_list_operations_refuses_an_invalid_request(
    queue: operations_pb2_grpc.OperationsStub, request_: dict[str, Any], field: str
) -> None:
    """An invalid filter, page token or page size is INVALID_ARGUMENT."""
    error = failure(lambda: queue.ListOperations(operations_pb2.ListOperationsRequest(**request_)))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", [field])


def test_list_operations_applies_its_filter(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """Operations are filtered by model, label and done, in pages too."""
    made = [waiting.add_class("colours", label, VIOLETS).name for label in ("teal", "rust", "teal")]
    cancel(queue, made[0])
    wanted = 'model = "models/colours" AND label = teal'
    assert [operation.name for operation in waiting.operations(wanted)] == [made[0], made[2]]
    assert [operation.name for operation in waiting.operations(f"{wanted} AND done = false")] == [
        made[2]
    ]
    page = queue.ListOperations(operations_pb2.ListOperationsRequest(filter=wanted, page_size=1))
    assert [operation.name for operation in page.operations] == [made[0]]
    assert page.next_page_token


def test_cancel_ends_a_waiting_operation(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """A cancelled operation is done with CANCELLED, also for those who watch it."""
    accepted = waiting.add_class("colours", "violet", VIOLETS)
    watched = waiting.watch(accepted.name)
    assert not next(watched).done
    cancel(queue, accepted.name)
    (last,) = watched
    assert last.raw == get(queue, accepted.name)
    assert (last.done, last.raw.error.code) == (True, grpc.StatusCode.CANCELLED.value[0])


def test_cancel_ends_a_running_operation(
    client: Client, operations: operations_pb2_grpc.OperationsStub, add_class: AddClass, model: str
) -> None:
    """A cancelled running operation is CANCELLED, never serves, and the next one succeeds."""
    accepted = client.add_class(model, "violet", MANY)
    for state in client.watch(accepted.name):
        if stage(state) == "CHANGE_STAGE_EMBEDDING":
            cancel(operations, accepted.name)
    assert state.raw.error.code == grpc.StatusCode.CANCELLED.value[0]
    assert client.model(model).serving_revision.revision == 1
    after = result(add_class(model, "indigo", VIOLETS)).revision
    assert list(after.labels) == ["amber", "blue", "crimson", "green", "indigo"]
    assert client.model(model).serving_revision == after


def test_delete_requires_a_finished_operation(
    waiting: Client, queue: operations_pb2_grpc.OperationsStub
) -> None:
    """DeleteOperation is FAILED_PRECONDITION until the operation is done, then deletes it."""
    accepted = waiting.add_class("colours", "violet", VIOLETS)
    assert failure(lambda: delete(queue, accepted.name)).code == "FAILED_PRECONDITION"
    cancel(queue, accepted.name)
    delete(queue, accepted.name)
    assert failure(lambda: get(queue, accepted.name)).code == "NOT_FOUND"
    assert accepted.name not in listed(queue, 0)


def test_delete_of_an_operation_keeps_its_class(
    client: Client, operations: operations_pb2_grpc.OperationsStub, add_class: AddClass, model: str
) -> None:
    """Deleting the operation of an added class does not change the model."""
    finished = add_class(model, "violet", VIOLETS)
    delete(operations, finished.name)
    assert "violet" in client.model(model).serving_revision.labels


@pytest.mark.parametrize(
    ("name", "code"),
    [(f"operations/{uuid.UUID(int=7)}", "NOT_FOUND"), ("violet", "INVALID_ARGUMENT")],
)
@pytest.mark.parametrize("call", ["get", "cancel", "delete", "wait", "watch"])
def test_an_unknown_operation_is_not_found(
    waiting: Client,
    queue: operations_pb2_grpc.OperationsStub,
    call: str,
    name: str,
    code: str,
) -> None:
    """In every method an unknown operation is NOT_FOUND, a malformed name INVALID_ARGUMENT."""
    calls = {
        "get": lambda: get(queue, name),
        "cancel": lambda: cancel(queue, name),
        "delete": lambda: delete(queue, name),
        "wait": lambda: wait(queue, name, 1),
        "watch": lambda: list(waiting.watch(name)),
    }
    assert failure(calls[call]).code == code


def test_operations_are_listed_without_their_revisions(
    server: Running, add_class: AddClass, model: str
) -> None:
    """Operations are listed although a revision made by one of them was removed."""
    first = add_class(model, "violet", VIOLETS)
    add_class(model, "indigo", VIOLETS)
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


def test_an_operation_survives_a_killed_worker(client: Client, server: Running, model: str) -> None:
    """If the worker is killed right after an upload was accepted, the class is added once."""
    accepted = client.add_class(model, "violet", MANY)
    killed = server.worker()
    os.kill(killed, signal.SIGKILL)
    *_, finished = client.watch(accepted.name)
    assert result(finished).revision.revision == 2
    assert list(client.model(model).revisions) == [1, 2]
    assert server.worker() != killed
    assert client.classify(model, [VIOLETS[0][1]]).revision == 2
