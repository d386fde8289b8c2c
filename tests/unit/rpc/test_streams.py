"""StreamClassify: messages are answered when they are ready, and the stream stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from structlog.testing import capture_logs
from support import virtual_time

from topwork.access import tokens
from topwork.access.access_file import Access
from topwork.access.principals import Caller
from topwork.client import calls
from topwork.errors import InvalidInput, NotFound, Overloaded, TopworkError, Unavailable
from topwork.rpc.interceptor import Interceptor
from topwork.rpc.servicers import ClassifierServicer
from topwork.rpc.streams import Streams
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import Classified, Timings
from topwork.serving.fair_queue import Flow
from topwork.telemetry import Telemetry
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.wire import status as statuses

Responses = list[classify_pb.StreamClassifyResponse]
SOON = 60.0
"""Seconds after which what a test waits for will not come."""


def somebody(host: str) -> Caller:
    """Return who calls from a host."""
    return Access(None).caller("classify", (), dict, f"ipv4:{host}:1")


ANYBODY = somebody("127.0.0.1")


class Engine:
    """Does what the first image of a request says: wait, or be missing, or broken."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.inside = 0
        self.most = 0
        self.budgets: list[float | None] = []
        self.callers: list[tuple[Flow | None, bool]] = []

    async def classify(
        self,
        model: str,
        images: Sequence[bytes],
        *,
        revision: int,
        top_k: int,
        budget: float | None,
        flow: Flow | None,
        can_wait: bool,
    ) -> Classified:
        """Answer with the revision that was asked for."""
        self.inside += len(images)
        self.most = max(self.most, self.inside)
        self.budgets.append(budget)
        self.callers.append((flow, can_wait))
        self.entered.set()
        try:
            if b"wait" in images:
                await self.gate.wait()
            if b"missing" in images:
                raise NotFound("there is no model 'models/x'", kind="model", resource=model)
            if b"broken" in images:
                raise ArithmeticError("secret")
        finally:
            self.inside -= len(images)
        timings = Timings(decode=0.0, queue=0.0, backbone=0.0, head=0.0, total=float(top_k))
        return Classified(revision=revision, results=(), timings=timings)


def message(
    number: int, *images: bytes, seconds: float | None = None
) -> classify_pb.StreamClassifyRequest:
    """Return a message; its revision is its id."""
    request = classify_pb.ClassifyRequest(model="models/x", images=images, revision=number)
    made = classify_pb.StreamClassifyRequest(id=number, request=request)
    if seconds is not None:
        made.timeout.CopyFrom(Duration(nanos=round(seconds * 1e9)))
    return made


def streams(
    engine: Engine, *, window: int = 4, most_seconds: float = 60.0, most_open: int = 64
) -> Streams:
    """Return the calls of a server."""
    return Streams(engine, most_seconds=most_seconds, window=window, most_open=most_open)


async def each(
    *messages: classify_pb.StreamClassifyRequest,
) -> AsyncIterator[classify_pb.StreamClassifyRequest]:
    """Yield messages."""
    for one in messages:
        yield one


def answers(
    *messages: classify_pb.StreamClassifyRequest, remaining: float | None = None
) -> tuple[Responses, Engine]:
    """Return what becomes of messages, and the engine that answered them."""

    async def scenario() -> tuple[Responses, Engine]:
        engine = Engine()
        stream = streams(engine).answer(each(*messages), lambda: remaining, ANYBODY)
        return [one async for one in stream], engine

    return asyncio.run(scenario())


def test_answers_come_in_the_order_of_completion() -> None:
    """A message that takes long does not hold up those after it; each answer has its id."""

    async def scenario() -> list[tuple[int, int]]:
        engine = Engine()
        found = []
        requests = each(message(2**62, b"wait"), message(3, b"now"), message(-5, b"now"))
        async for one in streams(engine).answer(requests, lambda: None, ANYBODY):
            found.append((one.id, one.response.revision))
            if len(found) == 2:
                engine.gate.set()
        return found

    assert asyncio.run(scenario()) == [(3, 3), (-5, -5), (2**62, 2**62)]


def test_a_message_that_fails_fails_alone() -> None:
    """The status of a failed message is what Classify would have given; the others are answered."""
    found, _ = answers(message(1, b"ok"), message(2, b"missing"), message(3, b"ok"))
    first, failed, last = sorted(found, key=lambda one: one.id)
    assert (first.WhichOneof("result"), last.WhichOneof("result")) == ("response", "response")
    assert failed.error.code == code_pb2.NOT_FOUND
    assert failed.error.message == "there is no model 'models/x'"
    assert statuses.reason(failed.error) == "NOT_FOUND"
    assert len(failed.error.details) == 2


def test_an_unexpected_error_is_for_the_log_only() -> None:
    """The client gets fixed text for its message, the log the error."""
    with capture_logs() as logs:
        found, _ = answers(message(1, b"broken"), message(2, b"ok"))
    failed, fine = sorted(found, key=lambda one: one.id)
    assert failed.error == statuses.internal()
    assert fine.HasField("response")
    assert [type(line["exc_info"]) for line in logs if "exc_info" in line] == [ArithmeticError]


def test_a_message_without_a_model_is_told() -> None:
    """An empty message is INVALID_ARGUMENT, as an empty Classify call."""
    (found,), _ = answers(classify_pb.StreamClassifyRequest(id=9))
    assert (found.id, found.error.code) == (9, code_pb2.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("seconds", "remaining", "budget"),
    [(None, None, 60.0), (0.25, None, 0.25), (0.25, 0.125, 0.125), (None, 5.0, 5.0)],
)
def test_the_shortest_time_counts(
    seconds: float | None, remaining: float | None, budget: float
) -> None:
    """A message has the least of its own timeout, the call's deadline, and the server's cap."""
    _, engine = answers(message(1, b"ok", seconds=seconds), remaining=remaining)
    assert engine.budgets == [budget]


def test_a_negative_timeout_is_refused() -> None:
    """A timeout before now is wrong, and only that message's error."""
    found, engine = answers(message(1, b"ok", seconds=-0.5), message(2, b"ok"))
    refused, fine = sorted(found, key=lambda one: one.id)
    assert refused.error.code == code_pb2.INVALID_ARGUMENT
    assert "timeout is -0.5 s" in refused.error.message
    assert (fine.HasField("response"), len(engine.budgets)) == (True, 1)


def test_a_stream_is_one_patient_caller() -> None:
    """All messages of a stream share one flow, and wait for room rather than fail."""
    _, engine = answers(*(message(n, b"ok") for n in range(5)))
    (caller,) = {id(flow) for flow, _ in engine.callers}
    assert caller != id(None)
    assert {can_wait for _, can_wait in engine.callers} == {True}


async def until(look: Callable[[], bool]) -> None:
    """Return as soon as ``look`` returns true."""
    while not look():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything go on that can."""
    for _ in range(200):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("images", "taken"), [(1, 8), (3, 3), (8, 1), (50, 1)])
def test_the_window_is_respected(images: int, taken: int) -> None:
    """Messages are taken while fewer than the window's images are in work, and at least one is."""

    async def scenario() -> tuple[int, int]:
        engine = Engine()
        requests = (message(n, *[b"wait"] * images) for n in range(20))
        stream = streams(engine, window=8).answer(each(*requests), lambda: None, ANYBODY)
        first = asyncio.ensure_future(anext(stream))
        await settle()
        inside = engine.inside
        engine.gate.set()
        count = 1 + len([one async for one in stream]) if await first else 0
        assert engine.most <= inside
        return inside, count

    assert asyncio.run(scenario()) == (taken * images, 20)


def test_a_client_that_does_not_read_is_not_read() -> None:
    """Answers that nobody takes hold their room: the source is left alone until one is taken."""

    async def scenario() -> list[int]:
        counts = []
        taken = 0

        async def endless() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
            nonlocal taken
            while True:
                taken += 1
                yield message(taken, b"ok")

        stream = streams(Engine(), window=8).answer(endless(), lambda: None, ANYBODY)
        for _ in range(3):
            await anext(stream)
            await settle()
            counts.append(taken)
        await stream.aclose()
        return counts

    assert asyncio.run(scenario()) == [8, 9, 10]


def test_messages_without_images_are_bounded_too() -> None:
    """A message that holds no image holds room all the same until it is answered."""

    async def scenario() -> int:
        taken = 0

        async def endless() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
            nonlocal taken
            while True:
                taken += 1
                yield classify_pb.StreamClassifyRequest()

        stream = streams(Engine(), window=8).answer(endless(), lambda: None, ANYBODY)
        await anext(stream)
        await settle()
        await stream.aclose()
        return taken

    assert asyncio.run(scenario()) == 8


def test_what_is_given_up_is_cancelled() -> None:
    """When the stream is left, everything in flight has ended by then."""

    async def scenario() -> tuple[int, int]:
        engine = Engine()
        requests = each(message(1, b"ok"), *(message(n, b"wait") for n in range(2, 9)))
        stream = streams(engine, window=8).answer(requests, lambda: None, ANYBODY)
        await anext(stream)
        await settle()
        before = engine.inside
        await stream.aclose()
        return before, engine.inside

    assert asyncio.run(scenario()) == (7, 0)


def test_a_stopping_server_answers_what_it_took() -> None:
    """After end() nothing more is read, what is in flight is answered, then it is Unavailable."""

    async def scenario() -> tuple[list[int], int]:
        engine = Engine()
        made = streams(engine, window=4)
        requests = (message(n, b"wait") for n in range(100))
        stream = made.answer(each(*requests), lambda: None, ANYBODY)
        first = asyncio.ensure_future(anext(stream))
        await settle()
        made.end()
        engine.gate.set()
        found = [(await first).id] + [(await anext(stream)).id for _ in range(3)]
        with pytest.raises(Unavailable, match="is stopping"):
            await anext(stream)
        with pytest.raises(Unavailable):
            await anext(made.answer(each(message(1, b"ok")), lambda: None, ANYBODY))
        return found, len(engine.budgets)

    assert asyncio.run(scenario()) == ([0, 1, 2, 3], 4)


def test_a_stream_that_was_read_to_its_end_ends_well() -> None:
    """When the client has sent all before the stop, all is answered and nothing is wrong."""

    async def scenario() -> list[int]:
        engine = Engine()
        made = streams(engine, window=4)
        stream = made.answer(each(message(1, b"wait"), message(2, b"wait")), lambda: None, ANYBODY)
        first = asyncio.ensure_future(anext(stream))
        await settle()
        made.end()
        engine.gate.set()
        return [(await first).id] + [one.id async for one in stream]

    assert asyncio.run(scenario()) == [1, 2]


@asynccontextmanager
async def served(
    engine: Engine,
) -> AsyncIterator[
    tuple[
        grpc.aio.Server,
        ClassifierServicer,
        classify_grpc.ClassifierServiceAsyncStub,
    ]
]:
    """Serve an engine on a free port; yield server, servicer and a stub."""
    server = grpc.aio.server(interceptors=[Interceptor(Telemetry(), Access(None))])
    servicer = ClassifierServicer(cast("Classifier", engine), most_seconds=60.0)
    classify_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, servicer, classify_grpc.ClassifierServiceStub(channel)
    finally:
        await server.stop(None)


class Opened:
    """A stream that stays open after its messages: what it was answered, and how it ended."""

    def __init__(
        self, made: Streams, caller: Caller, messages: Sequence[classify_pb.StreamClassifyRequest]
    ) -> None:
        self.answers = 0
        self.end = ""
        self._messages = messages
        self.task = asyncio.create_task(self._read(made, caller))

    async def _requests(self) -> AsyncIterator[classify_pb.StreamClassifyRequest]:
        for one in self._messages:
            yield one
        await asyncio.Event().wait()

    async def _read(self, made: Streams, caller: Caller) -> None:
        try:
            async for _ in made.answer(self._requests(), lambda: None, caller):
                self.answers += 1
        except TopworkError as error:
            self.end = error.reason


async def begin(
    made: Streams, caller: Caller = ANYBODY, *messages: classify_pb.StreamClassifyRequest
) -> Opened:
    """Open a stream, by default with one message, and let everything go on that can."""
    opened = Opened(made, caller, messages or [message(1, b"ok")])
    await settle()
    return opened


def test_one_caller_leaves_streams_to_others() -> None:
    """Who has as many as are free is refused one more; another caller has its own."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        mine = [await begin(made) for _ in range(3)]
        assert [one.answers for one in mine] == [1, 1, 0]
        assert mine[2].end == "TOO_MANY_STREAMS"
        for host in ("10.0.0.7", "10.0.0.8"):
            assert (await begin(made, somebody(host))).answers == 1
        assert (await begin(made, somebody("10.0.0.9"))).end == "TOO_MANY_STREAMS"
        mine[0].task.cancel()
        await settle()
        assert (await begin(made, somebody("10.0.0.9"))).answers == 1

    virtual_time.run(scenario())


def test_an_idle_stream_ends_where_another_needs_its_slot() -> None:
    """The one that was idle longest ends as STREAM_IDLE, when it was so for a minute."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        first = await begin(made)
        await asyncio.sleep(1.0)
        second = await begin(made)
        await asyncio.sleep(58.0)
        assert (await begin(made)).end == "TOO_MANY_STREAMS"
        await asyncio.sleep(2.0)
        assert (await begin(made)).answers == 1
        assert (first.end, second.end) == ("STREAM_IDLE", "")
        await asyncio.sleep(3600.0)
        assert not second.end  # nobody needs its slot

    virtual_time.run(scenario())


def test_each_that_needs_a_slot_ends_another_idle_stream() -> None:
    """Two that come at once are both let in."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        idle = [await begin(made) for _ in range(2)]
        await asyncio.sleep(61.0)
        fresh = [Opened(made, ANYBODY, [message(1, b"ok")]) for _ in range(2)]
        await settle()
        assert [one.answers for one in fresh] == [1, 1]
        assert [one.end for one in idle] == ["STREAM_IDLE"] * 2

    virtual_time.run(scenario())


def test_a_stream_with_something_in_it_is_not_idle() -> None:
    """However long its answer takes, or its client does not take the answer, it goes on."""

    async def scenario() -> None:
        engine = Engine()
        made = streams(engine, most_open=4)
        busy = await begin(made, ANYBODY, message(1, b"ok"), message(2, b"wait"))
        untaken = made.answer(each(message(1, b"ok")), lambda: None, ANYBODY)
        await anext(untaken)
        await asyncio.sleep(3600.0)
        assert (await begin(made)).end == "TOO_MANY_STREAMS"
        engine.gate.set()
        await settle()
        assert (busy.answers, busy.end) == (2, "")

    virtual_time.run(scenario())


def test_an_idle_stream_ends_for_who_has_fewer() -> None:
    """Nobody takes the one stream of another by opening many: who has most gives first."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        other = await begin(made, somebody("10.0.0.7"))
        await asyncio.sleep(1.0)
        mine = [await begin(made)]
        await asyncio.sleep(1.0)
        mine += [await begin(made)]
        last = await begin(made, somebody("10.0.0.8"))
        await asyncio.sleep(61.0)
        assert (await begin(made)).end == "TOO_MANY_STREAMS"
        assert not any(one.end for one in (other, *mine, last))
        assert (await begin(made, somebody("10.0.0.9"))).answers == 1
        assert [one.end for one in (other, *mine, last)] == ["", "STREAM_IDLE", "", ""]

    virtual_time.run(scenario())


def test_an_idle_stream_of_who_has_as_many_goes_on() -> None:
    """Who needs a second slot gives its own first one, not another's only one."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        other = await begin(made, somebody("10.0.0.7"))
        await asyncio.sleep(1.0)
        mine = await begin(made)
        last = await begin(made, somebody("10.0.0.8"))
        await asyncio.sleep(61.0)
        assert (await begin(made)).answers == 1
        assert [one.end for one in (other, mine, last)] == ["", "STREAM_IDLE", ""]

    virtual_time.run(scenario())


def limited(tmp_path: Path, limits: str) -> Caller:
    """Return somebody who has limits, and may ask one model only."""
    token, path = tokens.make(), tmp_path / "access.toml"
    path.write_text(
        f"[principals.a]\ntokens = ['{token.entry}']\nclassify = ['x']\nlimits = {{ {limits} }}\n"
    )
    access = Access(path)
    access._take(access._read(path))
    metadata = [("authorization", f"Bearer {token.token}")]
    return access.caller("classify", metadata, dict, "ipv4:127.0.0.1:1")


def test_a_message_waits_for_its_callers_images(tmp_path: Path) -> None:
    """Of a caller that may have three at a time no more are in the server; none is lost."""
    caller = limited(tmp_path, "images = 3")

    async def scenario() -> None:
        engine = Engine()
        made = streams(engine, window=100)
        messages = [message(number, b"wait", b"wait") for number in range(5)]
        answer = made.answer(each(*messages), lambda: None, caller)
        first = asyncio.ensure_future(anext(answer))
        await settle()
        assert engine.inside == 2
        engine.gate.set()
        await first
        assert len([one async for one in answer]) == 4
        assert engine.most == 2

    virtual_time.run(scenario())
    caller.principal.limiter.take(3)
    with pytest.raises(Overloaded):
        caller.principal.limiter.take(1)


def test_what_a_stream_took_is_given_back_when_it_is_left(tmp_path: Path) -> None:
    """Of messages in work, of those that wait, and of those whose answers were not begun."""
    caller = limited(tmp_path, "images = 5")

    async def scenario() -> None:
        engine = Engine()
        messages = [message(number, b"wait", b"wait") for number in range(5)]
        answer = streams(engine).answer(each(message(9, b"ok"), *messages), lambda: None, caller)
        await anext(answer)
        await settle()
        assert engine.inside > 0
        await answer.aclose()

    asyncio.run(scenario())
    caller.principal.limiter.take(5)
    with pytest.raises(Overloaded):
        caller.principal.limiter.take(1)


def test_a_message_about_a_model_that_is_not_the_callers_fails_alone(tmp_path: Path) -> None:
    """It is MODEL_FORBIDDEN, and never asked of the engine."""
    caller = limited(tmp_path, "")
    other = message(2, b"ok")
    other.request.model = "models/y"

    async def scenario() -> tuple[dict[int, str], int]:
        engine = Engine()
        found = streams(engine).answer(
            each(message(1, b"ok"), other, message(3, b"ok")), lambda: None, caller
        )
        reasons = {one.id: statuses.reason(one.error) async for one in found}
        return reasons, len(engine.budgets)

    assert asyncio.run(scenario()) == ({1: "", 2: "MODEL_FORBIDDEN", 3: ""}, 2)


def test_the_log_has_what_a_stream_was_asked() -> None:
    """A line a stream: messages and images."""
    with capture_logs() as logs:
        answers(message(1, b"ok", b"ok"), message(2, b"ok"), message(3, b"missing"))
    (line,) = (line for line in logs if line["event"] == "stream")
    assert (line["messages"], line["images"]) == (3, 4)


def test_what_the_requests_raise_ends_the_stream(tmp_path: Path) -> None:
    """An error of reading, such as a message that cannot be decoded, arrives as it is.

    What its messages took of their caller's limits is given back.
    """
    caller = limited(tmp_path, "images = 3")

    async def broken() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
        yield message(1, b"wait", b"wait")
        raise InvalidInput("the message cannot be decoded", field="request")

    async def scenario() -> None:
        await anext(streams(Engine()).answer(broken(), lambda: None, caller))

    with pytest.raises(InvalidInput):
        asyncio.run(scenario())
    caller.principal.limiter.take(3)


def test_the_half_close_ends_the_call_after_the_last_answer() -> None:
    """Over the wire: the client has sent all; the call is OK once the last answer is out."""

    async def scenario() -> tuple[list[int], grpc.StatusCode]:
        engine = Engine()
        async with asyncio.timeout(SOON), served(engine) as (_, _, stub):
            call = stub.StreamClassify(each(message(1, b"wait"), message(2, b"ok")))
            found = []
            async for one in call:
                found.append(one.id)
                engine.gate.set()
            return found, await call.code()

    assert asyncio.run(scenario()) == ([2, 1], grpc.StatusCode.OK)


def test_a_client_that_cancels_leaves_nothing_behind() -> None:
    """Over the wire: a cancelled call's messages leave the engine, and the log says CANCELLED."""

    async def scenario() -> int:
        engine = Engine()
        async with asyncio.timeout(SOON), served(engine) as (_, _, stub):
            call = stub.StreamClassify(each(*(message(n, b"wait") for n in range(20))))
            await engine.entered.wait()
            call.cancel()
            await until(lambda: not engine.inside)
            return engine.inside

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == 0
    assert [line["code"] for line in logs if line["event"] == "call"] == ["CANCELLED"]


def test_a_client_that_cancels_without_reading_leaves_nothing_behind() -> None:
    """Over the wire: the same when answers have piled up that the client never took."""

    async def scenario() -> int:
        engine = Engine()

        async def endless() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
            while True:
                yield message(1, b"ok", b"x" * 10_000)

        async with asyncio.timeout(SOON), served(engine) as (_, servicer, stub):
            call = stub.StreamClassify(endless())
            await until(lambda: len(engine.budgets) >= 100)
            call.cancel()
            await until(lambda: not servicer._streams._open)
            return engine.inside

    assert asyncio.run(scenario()) == 0


def test_the_deadline_of_the_call_is_that_of_the_stream() -> None:
    """Over the wire: a stream past its deadline is DEADLINE_EXCEEDED and leaves nothing behind."""

    async def scenario() -> tuple[grpc.StatusCode, int]:
        engine = Engine()
        async with asyncio.timeout(SOON), served(engine) as (_, servicer, stub):
            call = stub.StreamClassify(each(message(1, b"wait")), timeout=0.2)
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            await until(lambda: not servicer._streams._open)
            return await call.code(), engine.inside

    assert asyncio.run(scenario()) == (grpc.StatusCode.DEADLINE_EXCEEDED, 0)


def test_a_server_stops_before_its_grace_is_over() -> None:
    """Over the wire: what was taken is answered, then UNAVAILABLE with details; no waiting."""

    async def scenario() -> tuple[int, grpc.RpcError]:
        engine = Engine()
        silent = asyncio.Event()

        async def never_ends() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
            yield message(1, b"wait")
            await silent.wait()

        async with asyncio.timeout(SOON), served(engine) as (server, servicer, stub):
            call = stub.StreamClassify(never_ends())
            await engine.entered.wait()
            servicer.end_streams()
            stopping = asyncio.ensure_future(server.stop(10 * SOON))
            engine.gate.set()
            responses = aiter(call)
            found = (await anext(responses)).id
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(responses)
            await stopping
            return found, caught.value

    found, error = asyncio.run(scenario())
    told = calls.failed(error)
    assert (found, told.code, told.reason) == (1, "UNAVAILABLE", "UNAVAILABLE")
