"""Slots of streams, uploads and watches are shared fairly, and freed when access is revoked."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support import servers, tiny
from support.pictures import pictures
from support.servers import Running, failure

from topwork import Client
from topwork.access import tokens
from topwork.client.credentials import Credentials
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

TOKENS = {name: tokens.make() for name in ("greedy", "modest")}
VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 6))]
SLOTS = 8
LIMITS = {"max_streams": SLOTS, "max_uploads": SLOTS, "max_watches": SLOTS}


class Served(NamedTuple):
    """A server, a channel to it, and an operation that never starts."""

    server: Running
    channel: grpc.Channel
    operation: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Yield a server with few slots that accepts both tokens."""
    repository = tiny.repository(tmp_path / "repository")
    access = tmp_path / "access.toml"
    write_access(access, *TOKENS)
    with (
        servers.running(repository.root, worker=False, access=str(access), limits=LIMITS) as server,
        grpc.insecure_channel(server.address) as channel,
        client(server, "modest") as modest,
    ):
        yield Served(server, channel, modest.retrain("colours").name)


def write_access(access: Path, *names: str) -> None:
    """Write an access file with only these principals."""
    entries = (
        f"[principals.{name}]\ntokens = ['{TOKENS[name].entry}']\nadmin = ['*']\n" for name in names
    )
    fresh = access.with_suffix(".new")
    fresh.write_text("".join(entries))
    fresh.replace(access)


def client(server: Running, name: str) -> Client:
    """Return a client of a principal."""
    return Client(server.address, Credentials(token=TOKENS[name].token))


def bearer(name: str) -> tuple[tuple[str, str]]:
    """Return the call metadata of a principal."""
    return (("authorization", f"Bearer {TOKENS[name].token}"),)


class RequestStream:
    """Requests of a streaming call: the first at once, the others by ``send``."""

    def __init__(self, *first: Any) -> None:
        self._messages = [*first]
        self._changed = threading.Condition()
        self._ended = False

    def send(self, message: Any) -> None:
        """Send another message."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def end(self) -> None:
        """End the stream."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[Any]:
        """Yield the messages until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._messages or self._ended)
                if not self._messages:
                    return
                message = self._messages.pop(0)
            yield message


def message(number: int) -> classify_pb.StreamClassifyRequest:
    """Return a request of StreamClassify."""
    request = classify_pb.ClassifyRequest(model="models/colours", images=pictures("blue", 1))
    return classify_pb.StreamClassifyRequest(id=number, request=request)


def stream(served: Served, name: str, requests: RequestStream) -> Any:
    """Start a StreamClassify call."""
    stub = classify_grpc.ClassifierServiceStub(served.channel)
    return stub.StreamClassify(iter(requests), metadata=bearer(name), timeout=servers.TIMEOUT)


def watch(served: Served, name: str) -> Any:
    """Start a WatchOperation call."""
    stub = model_grpc.ModelServiceStub(served.channel)
    request = model_pb.WatchOperationRequest(name=served.operation)
    return stub.WatchOperation(request, metadata=bearer(name), timeout=servers.TIMEOUT)


def upload(served: Served, name: str, requests: RequestStream) -> Any:
    """Start an AddClass call."""
    stub = model_grpc.ModelServiceStub(served.channel)
    return stub.AddClass.future(iter(requests), metadata=bearer(name), timeout=servers.TIMEOUT)


def test_idle_streams_of_a_caller_leave_slots_to_others(served: Served) -> None:
    """A caller can hold at most half of the streams; another caller can still open a stream."""
    with contextlib.ExitStack() as stack:
        open_ = []
        for number in range(SLOTS // 2):
            requests = RequestStream(message(number))
            stack.callback(requests.end)
            open_.append(stream(served, "greedy", requests))
            next(open_[-1])
        error = failure(lambda: next(stream(served, "greedy", RequestStream(message(9)))))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
        with client(served.server, "modest") as modest:
            assert len(list(modest.classify_stream("colours", pictures("blue", 3)))) == 3


def test_watches_of_a_caller_leave_slots_to_others(served: Served) -> None:
    """A caller can hold at most half of the watches; another caller can still watch."""
    watches = [watch(served, "greedy") for _ in range(SLOTS // 2)]
    for call in watches:
        next(call)
    with client(served.server, "greedy") as greedy:
        error = failure(lambda: next(iter(greedy.watch(served.operation))))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHES")
    with client(served.server, "modest") as modest:
        assert next(iter(modest.watch(served.operation))).name == served.operation
    for call in watches:
        call.cancel()


def test_silent_uploads_of_a_caller_leave_slots_to_others(served: Served) -> None:
    """A caller can hold at most half of the uploads; another caller can still upload."""
    with contextlib.ExitStack() as stack:
        silent = [RequestStream() for _ in range(SLOTS // 2 + 1)]
        for requests in silent:
            stack.callback(requests.end)
        uploads = [upload(served, "greedy", requests) for requests in silent]
        (refused,) = servers.eventually(lambda: [call for call in uploads if call.done()])
        error = failure(refused.result)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS")
        with client(served.server, "modest") as modest:
            assert modest.add_class("colours", "violet", VIOLETS).name
        assert sum(call.done() for call in uploads) == 1


def test_calls_end_when_access_is_revoked(served: Served) -> None:
    """Streams, uploads and reflection end at their next message, a watch at its next poll."""
    config = change_pb.AddClassConfig(model="models/colours", label="violet")
    streamed, uploaded = (
        RequestStream(message(1)),
        RequestStream(change_pb.AddClassRequest(config=config)),
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    reflected = RequestStream(request)
    streaming = stream(served, "greedy", streamed)
    uploading = upload(served, "greedy", uploaded)
    watching = watch(served, "greedy")
    reflecting = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(
        iter(reflected), metadata=bearer("greedy"), timeout=servers.TIMEOUT
    )
    others = watch(served, "modest")
    for call in (streaming, watching, reflecting, others):
        next(call)
    write_access(served.server.repository.parent / "access.toml", "modest")
    assert served.server.log_entry("access")["principals"] == 1
    assert failure(lambda: list(watching)).reason == "CREDENTIALS_UNKNOWN"
    streamed.send(message(2))
    assert failure(lambda: list(streaming)).reason == "CREDENTIALS_UNKNOWN"
    reflected.send(request)
    assert failure(lambda: list(reflecting)).reason == "CREDENTIALS_UNKNOWN"
    images = [change_pb.TrainingImage(content=content) for _, content in VIOLETS]
    uploaded.send(change_pb.AddClassRequest(images=images))
    assert failure(uploading.result).reason == "CREDENTIALS_UNKNOWN"
    assert not others.done()
    others.cancel()


def test_health_answers_while_long_messages_arrive(served: Served) -> None:
    """Health answers between eight messages of 45 MiB, each of which blocks the event loop."""
    request = classify_pb.ClassifyRequest(
        model="models/colours", images=[bytes(15 * 2**20)] * 3
    ).SerializeToString()
    classify: Any = served.channel.unary_unary("/topwork.v1.ClassifierService/Classify")
    started = [classify.future(request, metadata=bearer("greedy")) for _ in range(8)]
    with grpc.insecure_channel(
        served.server.address, [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        moments = [time.monotonic()]
        while not all(call.done() for call in started):
            assert check(health_pb2.HealthCheckRequest(), timeout=servers.TIMEOUT).status
            moments.append(time.monotonic())
    worst = max(after - before for before, after in itertools.pairwise(moments))
    assert worst < (moments[-1] - moments[0]) / 4
