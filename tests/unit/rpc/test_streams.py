"""StreamClassify on the server: order of answers, bounds and cancellation."""

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
from topwork.inputs.kinds import AnyInput
from topwork.rpc.interceptor import Interceptor
from topwork.rpc.servicers.classifier import ClassifierServicer
from topwork.rpc.streams import Streams
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import Classified, Timings
from topwork.serving.explanation.explainer import Explainer
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
        self.callers: list[tuple[Flow | None, bool, str]] = []

    async def classify(
        self,
        model: str,
        images: Sequence[AnyInput],
        *,
        revision: int,
        top_k: int,
        budget: float | None,
        flow: Flow | None,
        can_wait: bool,
        caller: str,
    ) -> Classified:
        """Answer with the revision that was asked for."""
        self.inside += len(images)
        self.most = max(self.most, self.inside)
        self.budgets.append(budget)
        self.callers.append((flow, can_wait, caller))
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
    for message in messages:
        yield message


def answers(
    *messages: classify_pb.StreamClassifyRequest, remaining: float | None = None
) -> tuple[Responses, Engine]:
    """Return what becomes of messages, and the engine that answered them."""

    async def scenario() -> tuple[Responses, Engine]:
        engine = Engine()
        stream = streams(engine).answer(each(*messages), lambda: remaining, ANYBODY)
        return [answer async for answer in stream], engine

    return asyncio.run(scenario())


def test_answers_come_in_the_order_of_completion() -> None:
    """A slow message does not delay those after it; each answer has its id."""

    async def scenario() -> list[tuple[int, int]]:
        engine = Engine()
        found = []
        requests = each(message(2**62, b"wait"), message(3, b"now"), message(-5, b"now"))
        async for answer in streams(engine).answer(requests, lambda: None, ANYBODY):
            found.append((answer.id, answer.response.revision))
            if len(found) == 2:
                engine.gate.set()
        return found

    assert asyncio.run(scenario()) == [(3, 3), (-5, -5), (2**62, 2**62)]


def test_failed_message_fails_alone() -> None:
    """A failed message has the status that Classify would have given; the others are answered."""
    found, _ = answers(message(1, b"ok"), message(2, b"missing"), message(3, b"ok"))
    first, failed, last = sorted(found, key=lambda answer: answer.id)
    assert (first.WhichOneof("result"), last.WhichOneof("result")) == ("response", "response")
    assert failed.error.code == code_pb2.NOT_FOUND
    assert failed.error.message == "there is no model 'models/x'"
    assert statuses.reason(failed.error) == "NOT_FOUND"
    assert len(failed.error.details) == 2


def test_unexpected_error_is_only_logged() -> None:
    """The client gets a fixed text, the log the error with its traceback."""
    with capture_logs() as logs:
        found, _ = answers(message(1, b"broken"), message(2, b"ok"))
    failed, fine = sorted(found, key=lambda answer: answer.id)
    assert failed.error == statuses.internal()
    assert fine.HasField("response")
    assert [type(line["exc_info"]) for line in logs if "exc_info" in line] == [ArithmeticError]


def test_message_without_model_is_refused() -> None:
    """An empty message is INVALID_ARGUMENT, as an empty Classify call."""
    (found,), _ = answers(classify_pb.StreamClassifyRequest(id=9))
    assert (found.id, found.error.code) == (9, code_pb2.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("seconds", "remaining", "budget"),
    [(None, None, 60.0), (0.25, None, 0.25), (0.25, 0.125, 0.125), (None, 5.0, 5.0)],
)
def test_message_has_the_shortest_time_limit(
    seconds: float | None, remaining: float | None, budget: float
) -> None:
    """It is the least of the message's timeout, the call's deadline and the server's limit."""
    _, engine = answers(message(1, b"ok", seconds=seconds), remaining=remaining)
    assert engine.budgets == [budget]


def test_negative_timeout_is_refused() -> None:
    """A negative timeout is an error of that message only."""
    found, engine = answers(message(1, b"ok", seconds=-0.5), message(2, b"ok"))
    refused, fine = sorted(found, key=lambda answer: answer.id)
    assert refused.error.code == code_pb2.INVALID_ARGUMENT
    assert "timeout is -0.5 s" in refused.error.message
    assert (fine.HasField("response"), len(engine.budgets)) == (True, 1)


def test_messages_of_a_stream_share_one_flow() -> None:
    """They have the turns of their caller, and wait for capacity rather than fail."""
    _, engine = answers(*(message(n, b"ok") for n in range(5)))
    ((flow, can_wait, caller),) = set(engine.callers)
    assert flow is not None
    assert can_wait
    assert caller == ANYBODY.turns


async def until(look: Callable[[], bool]) -> None:
    """Return as soon as ``look`` returns true."""
    while not look():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.001)


async def run_pending_tasks() -> None:
    """Let all tasks run until they wait."""
    for _ in range(200):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("images", "taken"), [(1, 8), (3, 3), (8, 1), (50, 1)])
def test_stream_reads_only_within_its_window(images: int, taken: int) -> None:
    """Messages are read while fewer images than the window are in flight."""

    async def scenario() -> tuple[int, int]:
        engine = Engine()
        requests = (message(n, *[b"wait"] * images) for n in range(20))
        stream = streams(engine, window=8).answer(each(*requests), lambda: None, ANYBODY)
        first = asyncio.ensure_future(anext(stream))
        await run_pending_tasks()
        inside = engine.inside
        engine.gate.set()
        count = 1 + len([answer async for answer in stream]) if await first else 0
        assert engine.most <= inside
        return inside, count

    assert asyncio.run(scenario()) == (taken * images, 20)


def test_unread_answers_stop_reading() -> None:
    """Answers that the client does not read stay in the window, so nothing more is read from it."""

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
            await run_pending_tasks()
            counts.append(taken)
        await stream.aclose()
        return counts

    assert asyncio.run(scenario()) == [8, 9, 10]


def test_messages_without_images_count_in_the_window() -> None:
    """A message without images takes one place in the window until it is answered."""

    async def scenario() -> int:
        taken = 0

        async def endless() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
            nonlocal taken
            while True:
                taken += 1
                yield classify_pb.StreamClassifyRequest()

        stream = streams(Engine(), window=8).answer(endless(), lambda: None, ANYBODY)
        await anext(stream)
        await run_pending_tasks()
        await stream.aclose()
        return taken

    assert asyncio.run(scenario()) == 8


def test_abandoned_stream_cancels_its_messages() -> None:
    """When the caller leaves the stream, everything in flight ends."""

    async def scenario() -> tuple[int, int]:
        engine = Engine()
        requests = each(message(1, b"ok"), *(message(n, b"wait") for n in range(2, 9)))
        stream = streams(engine, window=8).answer(requests, lambda: None, ANYBODY)
        await anext(stream)
        await run_pending_tasks()
        before = engine.inside
        await stream.aclose()
        return before, engine.inside

    assert asyncio.run(scenario()) == (7, 0)


def test_stopping_server_answers_messages_in_flight() -> None:
    """After end() messages in flight are answered, then the stream is Unavailable."""

    async def scenario() -> tuple[list[int], int]:
        engine = Engine()
        made = streams(engine, window=4)
        requests = (message(n, b"wait") for n in range(100))
        stream = made.answer(each(*requests), lambda: None, ANYBODY)
        first = asyncio.ensure_future(anext(stream))
        await run_pending_tasks()
        made.end()
        engine.gate.set()
        found = [(await first).id] + [(await anext(stream)).id for _ in range(3)]
        with pytest.raises(Unavailable, match="is stopping"):
            await anext(stream)
        with pytest.raises(Unavailable):
            await anext(made.answer(each(message(1, b"ok")), lambda: None, ANYBODY))
        return found, len(engine.budgets)

    assert asyncio.run(scenario()) == ([0, 1, 2, 3], 4)


def test_stream_read_to_its_end_succeeds_while_stopping() -> None:
    """When the client has sent all before the stop, all is answered without an error."""

    async def scenario() -> list[int]:
        engine = Engine()
        made = streams(engine, window=4)
        stream = made.answer(each(message(1, b"wait"), message(2, b"wait")), lambda: None, ANYBODY)
        first = asyncio.ensure_future(anext(stream))
        await run_pending_tasks()
        made.end()
        engine.gate.set()
        return [(await first).id] + [answer.id async for answer in stream]

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
    servicer = ClassifierServicer(
        cast("Classifier", engine), cast("Explainer", None), most_seconds=60.0
    )
    classify_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, servicer, classify_grpc.ClassifierServiceStub(channel)
    finally:
        await server.stop(None)


class OpenStream:
    """A stream that stays open after its messages; records answers and how it ended."""

    def __init__(
        self, made: Streams, caller: Caller, messages: Sequence[classify_pb.StreamClassifyRequest]
    ) -> None:
        self.answers = 0
        self.end = ""
        self._messages = messages
        self.task = asyncio.create_task(self._read(made, caller))

    async def _requests(self) -> AsyncIterator[classify_pb.StreamClassifyRequest]:
        for message in self._messages:
            yield message
        await asyncio.Event().wait()

    async def _read(self, made: Streams, caller: Caller) -> None:
        try:
            async for _ in made.answer(self._requests(), lambda: None, caller):
                self.answers += 1
        except TopworkError as error:
            self.end = error.reason


async def begin(
    made: Streams, caller: Caller = ANYBODY, *messages: classify_pb.StreamClassifyRequest
) -> OpenStream:
    """Begin a call, by default with one message, and let all tasks run until they wait."""
    opened = OpenStream(made, caller, messages or [message(1, b"ok")])
    await run_pending_tasks()
    return opened


def test_caller_with_many_streams_leaves_slots_to_others() -> None:
    """A caller with all free slots is refused one more; another caller has its own."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        mine = [await begin(made) for _ in range(3)]
        assert [stream.answers for stream in mine] == [1, 1, 0]
        assert mine[2].end == "TOO_MANY_STREAMS"
        for host in ("10.0.0.7", "10.0.0.8"):
            assert (await begin(made, somebody(host))).answers == 1
        assert (await begin(made, somebody("10.0.0.9"))).end == "TOO_MANY_STREAMS"
        mine[0].task.cancel()
        await run_pending_tasks()
        assert (await begin(made, somebody("10.0.0.9"))).answers == 1

    virtual_time.run(scenario())


def test_idle_stream_ends_if_another_needs_its_slot() -> None:
    """The stream that was idle longest, for at least a minute, ends as STREAM_IDLE."""

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


def test_each_new_stream_ends_another_idle_one() -> None:
    """Two new streams at once are both accepted."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        idle = [await begin(made) for _ in range(2)]
        await asyncio.sleep(61.0)
        fresh = [OpenStream(made, ANYBODY, [message(1, b"ok")]) for _ in range(2)]
        await run_pending_tasks()
        assert [stream.answers for stream in fresh] == [1, 1]
        assert [stream.end for stream in idle] == ["STREAM_IDLE"] * 2

    virtual_time.run(scenario())


def test_stream_with_messages_in_flight_is_not_idle() -> None:
    """It continues however long its answer takes, and while the client does not read the answer."""

    async def scenario() -> None:
        engine = Engine()
        made = streams(engine, most_open=4)
        busy = await begin(made, ANYBODY, message(1, b"ok"), message(2, b"wait"))
        untaken = made.answer(each(message(1, b"ok")), lambda: None, ANYBODY)
        await anext(untaken)
        await asyncio.sleep(3600.0)
        assert (await begin(made)).end == "TOO_MANY_STREAMS"
        engine.gate.set()
        await run_pending_tasks()
        assert (busy.answers, busy.end) == (2, "")

    virtual_time.run(scenario())


def test_idle_stream_of_caller_with_most_streams_ends_first() -> None:
    """No caller loses its only stream because another one opens many."""

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
        assert not any(stream.end for stream in (other, *mine, last))
        assert (await begin(made, somebody("10.0.0.9"))).answers == 1
        assert [stream.end for stream in (other, *mine, last)] == ["", "STREAM_IDLE", "", ""]

    virtual_time.run(scenario())


def test_second_stream_replaces_the_callers_own_idle_one() -> None:
    """A caller that needs a second slot loses its own idle stream, not another's only one."""

    async def scenario() -> None:
        made = streams(Engine(), most_open=4)
        other = await begin(made, somebody("10.0.0.7"))
        await asyncio.sleep(1.0)
        mine = await begin(made)
        last = await begin(made, somebody("10.0.0.8"))
        await asyncio.sleep(61.0)
        assert (await begin(made)).answers == 1
        assert [stream.end for stream in (other, mine, last)] == ["", "STREAM_IDLE", ""]

    virtual_time.run(scenario())


def limited_caller(tmp_path: Path, limits: str) -> Caller:
    """Return a caller with limits that may use one model only."""
    token, path = tokens.make(), tmp_path / "access.toml"
    path.write_text(
        f"[principals.a]\ntokens = ['{token.entry}']\nclassify = ['x']\nlimits = {{ {limits} }}\n"
    )
    access = Access(path)
    access._apply(access._read(path))
    metadata = [("authorization", f"Bearer {token.token}")]
    return access.caller("classify", metadata, dict, "ipv4:127.0.0.1:1")


def test_message_waits_for_its_callers_limit_of_images(tmp_path: Path) -> None:
    """A caller that may have three images at a time never has more in the server; none is lost."""
    caller = limited_caller(tmp_path, "images = 3")

    async def scenario() -> None:
        engine = Engine()
        made = streams(engine, window=100)
        messages = [message(number, b"wait", b"wait") for number in range(5)]
        answer = made.answer(each(*messages), lambda: None, caller)
        first = asyncio.ensure_future(anext(answer))
        await run_pending_tasks()
        assert engine.inside == 2
        engine.gate.set()
        await first
        assert len([answered async for answered in answer]) == 4
        assert engine.most == 2

    virtual_time.run(scenario())
    caller.principal.limiter.take(3)
    with pytest.raises(Overloaded):
        caller.principal.limiter.take(1)


def test_abandoned_stream_frees_its_callers_limit(tmp_path: Path) -> None:
    """The images of messages in flight, of waiting ones, and of those not begun are freed."""
    caller = limited_caller(tmp_path, "images = 5")

    async def scenario() -> None:
        engine = Engine()
        messages = [message(number, b"wait", b"wait") for number in range(5)]
        answer = streams(engine).answer(each(message(9, b"ok"), *messages), lambda: None, caller)
        await anext(answer)
        await run_pending_tasks()
        assert engine.inside > 0
        await answer.aclose()

    asyncio.run(scenario())
    caller.principal.limiter.take(5)
    with pytest.raises(Overloaded):
        caller.principal.limiter.take(1)


def test_message_for_forbidden_model_fails_alone(tmp_path: Path) -> None:
    """It is MODEL_FORBIDDEN, and never reaches the engine."""
    caller = limited_caller(tmp_path, "")
    other = message(2, b"ok")
    other.request.model = "models/y"

    async def scenario() -> tuple[dict[int, str], int]:
        engine = Engine()
        found = streams(engine).answer(
            each(message(1, b"ok"), other, message(3, b"ok")), lambda: None, caller
        )
        reasons = {answer.id: statuses.reason(answer.error) async for answer in found}
        return reasons, len(engine.budgets)

    assert asyncio.run(scenario()) == ({1: "", 2: "MODEL_FORBIDDEN", 3: ""}, 2)


def test_stream_is_logged_with_its_counts() -> None:
    """One line a stream: messages and images."""
    with capture_logs() as logs:
        answers(message(1, b"ok", b"ok"), message(2, b"ok"), message(3, b"missing"))
    (line,) = (line for line in logs if line["event"] == "stream")
    assert (line["messages"], line["images"]) == (3, 4)


def test_error_of_reading_ends_the_stream(tmp_path: Path) -> None:
    """An error of reading reaches the client unchanged; the images of its messages are freed."""
    caller = limited_caller(tmp_path, "images = 3")

    async def broken() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
        yield message(1, b"wait", b"wait")
        raise InvalidInput("the message cannot be decoded", field="request")

    async def scenario() -> None:
        await anext(streams(Engine()).answer(broken(), lambda: None, caller))

    with pytest.raises(InvalidInput):
        asyncio.run(scenario())
    caller.principal.limiter.take(3)


def test_call_ends_after_the_last_answer() -> None:
    """Over the wire: the client has sent all; the call is OK after the last answer."""

    async def scenario() -> tuple[list[int], grpc.StatusCode]:
        engine = Engine()
        async with asyncio.timeout(SOON), served(engine) as (_, _, stub):
            call = stub.StreamClassify(each(message(1, b"wait"), message(2, b"ok")))
            found = []
            async for answer in call:
                found.append(answer.id)
                engine.gate.set()
            return found, await call.code()

    assert asyncio.run(scenario()) == ([2, 1], grpc.StatusCode.OK)


def test_cancelled_stream_leaves_nothing_behind() -> None:
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


def test_cancelled_stream_with_unread_answers_leaves_nothing_behind() -> None:
    """Over the wire: the same with answers that the client never read."""

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


def test_stream_past_its_deadline_leaves_nothing_behind() -> None:
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


def test_stopping_server_does_not_wait_for_open_streams() -> None:
    """Over the wire: messages in flight are answered, then the stream is UNAVAILABLE."""

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
