"""One caller takes no slots from others, and holds none after its rights are taken away."""

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
    """A server, a channel to it, and an operation that nobody does."""

    server: Running
    channel: grpc.Channel
    operation: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Yield a server that knows both tokens and has few slots."""
    repository = tiny.repository(tmp_path / "repository")
    access = tmp_path / "access.toml"
    let_in(access, *TOKENS)
    with (
        servers.running(repository.root, worker=False, access=str(access), limits=LIMITS) as server,
        grpc.insecure_channel(server.address) as channel,
        client(server, "modest") as one,
    ):
        yield Served(server, channel, one.retrain("colours").name)


def let_in(access: Path, *names: str) -> None:
    """Let an access file have these principals alone."""
    entries = (
        f"[principals.{name}]\ntokens = ['{TOKENS[name].entry}']\nadmin = ['*']\n" for name in names
    )
    fresh = access.with_suffix(".new")
    fresh.write_text("".join(entries))
    fresh.replace(access)


def client(server: Running, name: str) -> Client:
    """Return somebody's client."""
    return Client(server.address, Credentials(token=TOKENS[name].token))


def bearer(name: str) -> tuple[tuple[str, str]]:
    """Return the metadata of somebody's calls."""
    return (("authorization", f"Bearer {TOKENS[name].token}"),)


class Silent:
    """Requests of a call, the first ones at once and the others when the test says so."""

    def __init__(self, *first: Any) -> None:
        self._messages = [*first]
        self._changed = threading.Condition()
        self._ended = False

    def say(self, message: Any) -> None:
        """Send one more."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def end(self) -> None:
        """Send no more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[Any]:
        """Yield them."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._messages or self._ended)
                if not self._messages:
                    return
                message = self._messages.pop(0)
            yield message


def message(number: int) -> classify_pb.StreamClassifyRequest:
    """Return a message of a stream."""
    request = classify_pb.ClassifyRequest(model="models/colours", images=pictures("blue", 1))
    return classify_pb.StreamClassifyRequest(id=number, request=request)


def stream(served: Served, name: str, requests: Silent) -> Any:
    """Begin a StreamClassify call."""
    stub = classify_grpc.ClassifierServiceStub(served.channel)
    return stub.StreamClassify(iter(requests), metadata=bearer(name), timeout=servers.PATIENCE)


def watch(served: Served, name: str) -> Any:
    """Begin a WatchOperation call."""
    stub = model_grpc.ModelServiceStub(served.channel)
    request = model_pb.WatchOperationRequest(name=served.operation)
    return stub.WatchOperation(request, metadata=bearer(name), timeout=servers.PATIENCE)


def upload(served: Served, name: str, requests: Silent) -> Any:
    """Begin an AddClass call."""
    stub = model_grpc.ModelServiceStub(served.channel)
    return stub.AddClass.future(iter(requests), metadata=bearer(name), timeout=servers.PATIENCE)


def test_idle_streams_of_one_leave_streams_to_others(served: Served) -> None:
    """Half of the streams, no more, are one caller's; what it ends others of its calls can have."""
    with contextlib.ExitStack() as stack:
        open_ = []
        for number in range(SLOTS // 2):
            requests = Silent(message(number))
            stack.callback(requests.end)
            open_.append(stream(served, "greedy", requests))
            next(open_[-1])
        error = failure(lambda: next(stream(served, "greedy", Silent(message(9)))))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS")
        with client(served.server, "modest") as one:
            assert len(list(one.classify_stream("colours", pictures("blue", 3)))) == 3


def test_watches_of_one_leave_watches_to_others(served: Served) -> None:
    """The same of those who wait for operations, in either way."""
    watches = [watch(served, "greedy") for _ in range(SLOTS // 2)]
    for one in watches:
        next(one)
    with client(served.server, "greedy") as greedy:
        error = failure(lambda: next(iter(greedy.watch(served.operation))))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHES")
    with client(served.server, "modest") as modest:
        assert next(iter(modest.watch(served.operation))).name == served.operation
    for one in watches:
        one.cancel()


def test_silent_uploads_of_one_leave_uploads_to_others(served: Served) -> None:
    """The same of uploads."""
    with contextlib.ExitStack() as stack:
        silent = [Silent() for _ in range(SLOTS // 2 + 1)]
        for requests in silent:
            stack.callback(requests.end)
        uploads = [upload(served, "greedy", requests) for requests in silent]
        (refused,) = servers.eventually(lambda: [one for one in uploads if one.done()])
        error = failure(refused.result)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS")
        with client(served.server, "modest") as modest:
            assert modest.add_class("colours", "violet", VIOLETS).name
        assert sum(one.done() for one in uploads) == 1


def test_calls_end_when_their_callers_rights_do(served: Served) -> None:
    """A stream, an upload and reflection at their next message, a watch at its next look."""
    config = change_pb.AddClassConfig(model="models/colours", label="violet")
    streamed, uploaded = Silent(message(1)), Silent(change_pb.AddClassRequest(config=config))
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    reflected = Silent(asked)
    streaming = stream(served, "greedy", streamed)
    uploading = upload(served, "greedy", uploaded)
    watching = watch(served, "greedy")
    reflecting = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(
        iter(reflected), metadata=bearer("greedy"), timeout=servers.PATIENCE
    )
    others = watch(served, "modest")
    for one in (streaming, watching, reflecting, others):
        next(one)
    let_in(served.server.repository.parent / "access.toml", "modest")
    assert served.server.fact("access")["principals"] == 1
    assert failure(lambda: list(watching)).reason == "CREDENTIALS_UNKNOWN"
    streamed.say(message(2))
    assert failure(lambda: list(streaming)).reason == "CREDENTIALS_UNKNOWN"
    reflected.say(asked)
    assert failure(lambda: list(reflecting)).reason == "CREDENTIALS_UNKNOWN"
    images = [change_pb.TrainingImage(content=content) for _, content in VIOLETS]
    uploaded.say(change_pb.AddClassRequest(images=images))
    assert failure(uploading.result).reason == "CREDENTIALS_UNKNOWN"
    assert not others.done()
    others.cancel()


def test_health_answers_while_long_messages_come(served: Served) -> None:
    """Eight of 45 MiB at once: each holds up the event loop, but not one right after another."""
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
        while not all(one.done() for one in started):
            assert check(health_pb2.HealthCheckRequest(), timeout=servers.PATIENCE).status
            moments.append(time.monotonic())
    worst = max(after - before for before, after in itertools.pairwise(moments))
    assert worst < (moments[-1] - moments[0]) / 4
