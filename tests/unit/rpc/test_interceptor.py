"""The interceptor: status of errors, access, limits and one log line a call."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from topwork import AsyncClient, CallFailed
from topwork.access import tokens
from topwork.access.access_file import Access
from topwork.access.slots import Slots
from topwork.client import calls
from topwork.errors import NotFound, Overloaded, TopworkError
from topwork.rpc.health import Health
from topwork.rpc.interceptor import Interceptor
from topwork.rpc.reading import Reading
from topwork.telemetry import Telemetry
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

SOON = 30.0
"""Seconds after which what a test waits for will not come."""

TOKENS = {name: tokens.make() for name in ("a", "b")}


def not_found() -> NotFound:
    """Return a new NotFound; a raised error keeps references to the server."""
    return NotFound("there is no model 'models/x'", kind="model", resource="models/x")


class FakeServicer(classify_grpc.ClassifierServiceServicer, model_grpc.ModelServiceServicer):
    """Servicer whose methods all do the same: raise ``error``, answer, or hang."""

    def __init__(self, error: BaseException | None = None, *, hangs: bool = False) -> None:
        self.error = error
        self.hangs = hangs
        self.calls = 0
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    async def act(self) -> None:
        """Raise, answer or hang."""
        self.calls += 1
        self.entered.set()
        try:
            if self.hangs:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
        finally:
            self.left.set()

    async def GetModel(self, request: Any, context: Any) -> model_pb.Model:
        """Not called in the tests."""
        raise NotImplementedError

    async def ListModels(self, request: Any, context: Any) -> model_pb.ListModelsResponse:
        """Not called in the tests."""
        raise NotImplementedError

    async def Classify(self, request: Any, context: Any) -> classify_pb.ClassifyResponse:
        """Answer one request with one response."""
        await self.act()
        return classify_pb.ClassifyResponse(revision=3)

    async def Explain(self, request: Any, context: Any) -> classify_pb.ExplainResponse:
        """Not called in the tests."""
        raise NotImplementedError

    async def StreamClassify(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[classify_pb.StreamClassifyResponse]:
        """Answer each request with one response."""
        async for request in request_iterator:
            yield classify_pb.StreamClassifyResponse(id=request.id)

    async def AddClass(self, request_iterator: Any, context: Any) -> Any:
        """Answer many requests with one response."""
        await self.act()
        return operations_pb2.Operation(name="operations/x")

    async def AddExamples(self, request_iterator: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def AddClasses(self, request_iterator: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def ListRevisions(self, request: Any, context: Any) -> model_pb.ListRevisionsResponse:
        """Not called in the tests."""
        raise NotImplementedError

    async def GetReport(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def CreateModel(self, request: Any, context: Any) -> model_pb.Model:
        """Not called in the tests."""
        raise NotImplementedError

    async def CopyModel(self, request: Any, context: Any) -> model_pb.Model:
        """Not called in the tests."""
        raise NotImplementedError

    async def DeleteModel(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def UndeleteModel(self, request: Any, context: Any) -> model_pb.Model:
        """Not called in the tests."""
        raise NotImplementedError

    async def ListBackbones(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def RemoveClass(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def RenameClass(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def Retrain(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def ListExamples(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def GetExample(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def RemoveExamples(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def MoveExamples(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def Rollback(self, request: Any, context: Any) -> model_pb.Model:
        """Not called in the tests."""
        raise NotImplementedError

    async def PinRevision(self, request: Any, context: Any) -> model_pb.Model:
        """Not called in the tests."""
        raise NotImplementedError

    async def Evaluate(self, request_iterator: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def ListEvaluationSets(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def GetEvaluationSet(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def DeleteEvaluationSet(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def ListEvaluations(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def GetEvaluation(self, request: Any, context: Any) -> Any:
        """Not called in the tests."""
        raise NotImplementedError

    async def WatchOperation(
        self,
        request: Any,
        context: Any,
    ) -> AsyncIterator[model_pb.WatchOperationResponse]:
        """Answer one with many: one answer comes before whatever happens."""
        operation = operations_pb2.Operation(name="operations/x")
        yield model_pb.WatchOperationResponse(operation=operation)
        await self.act()


@asynccontextmanager
async def served(fake: FakeServicer, interceptor: Interceptor | None = None) -> AsyncIterator[str]:
    """Serve a fake on a free port and yield the address."""
    interceptor = interceptor or Interceptor(Telemetry(), Access(None))
    server = grpc.aio.server(interceptors=[interceptor])
    classify_grpc.add_ClassifierServiceServicer_to_server(fake, server)
    model_grpc.add_ModelServiceServicer_to_server(fake, server)
    health = Health({"": lambda: True})
    await health.start()
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await health.aclose()
        await interceptor.calls.access.aclose()


async def call(client: AsyncClient, method: str) -> list[Any]:
    """Call a method and return its answers."""
    if method == "Classify":
        return [await client.classify("x", [b"photo"])]
    if method == "AddClass":
        return [await client.add_class("x", "label", [("a photo", b"photo")])]
    return [operation async for operation in client.watch("operations/x")]


def ask(fake: FakeServicer, method: str) -> tuple[list[Any] | CallFailed, list[Any]]:
    """Return what a client gets from ``fake``, and the log without the audit."""

    async def scenario() -> list[Any] | CallFailed:
        async with served(fake) as address, AsyncClient(address) as client:
            try:
                return await call(client, method)
            except CallFailed as error:
                return error

    with capture_logs() as logs:
        answers = asyncio.run(scenario())
    return answers, [line for line in logs if line["event"] != "audit"]


METHODS = pytest.mark.parametrize("method", ["Classify", "AddClass", "WatchOperation"])


@METHODS
def test_expected_error_reaches_the_client(method: str) -> None:
    """Code, text and details of the error arrive, in unary calls and streams."""
    failed, logs = ask(FakeServicer(not_found()), method)
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason, str(failed)) == ("NOT_FOUND", "NOT_FOUND", str(not_found()))
    assert len(failed.status.details) == 2
    (line,) = logs
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "NOT_FOUND")
    assert line["error"] == str(not_found())


@METHODS
@pytest.mark.parametrize(
    "make",
    [
        lambda: ZeroDivisionError("secret"),
        lambda: ExceptionGroup("secret", [ValueError("secret")]),
        lambda: TimeoutError("secret"),
    ],
)
def test_unexpected_error_is_only_logged(method: str, make: Callable[[], Exception]) -> None:
    """The client gets a fixed text, the log the error with its traceback."""
    error = make()
    failed, logs = ask(FakeServicer(error), method)
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason) == ("INTERNAL", "INTERNAL")
    assert str(failed) == "internal error; see the server's log"
    assert "secret" not in str(failed.status)
    unexpected, access = logs
    assert unexpected["exc_info"] is error
    assert error.__traceback__ is not None
    assert (unexpected["log_level"], access["code"]) == ("error", "INTERNAL")


def test_call_of_stopped_server_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GRPC's error after the server has stopped is a cancelled call, not an unexpected error."""

    async def stopped(read: Coroutine[Any, Any, Any], _: str) -> Any:
        read.close()
        raise grpc.aio.BaseError("Server already stopped.")

    interceptor = Interceptor(Telemetry(), Access(None))
    monkeypatch.setattr(interceptor.calls.reading, "take", stopped)

    async def scenario() -> None:
        async with (
            served(FakeServicer(), interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await begin(channel, "Classify")

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [(line["event"], line["code"]) for line in logs] == [("call", "CANCELLED")]


@METHODS
def test_call_is_logged_in_one_line(method: str) -> None:
    """A successful call is one line: method, code, time and peer."""
    answers, logs = ask(FakeServicer(), method)
    assert isinstance(answers, list)
    assert len(answers) == 1
    (line,) = logs
    service = "ClassifierService" if method == "Classify" else "ModelService"
    assert line["method"] == f"/topwork.v1.{service}/{method}"
    assert (line["event"], line["code"], line["log_level"]) == ("call", "OK", "info")
    assert line["milliseconds"] >= 0
    assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_responses_before_an_error_arrive() -> None:
    """A stream that fails later has delivered its earlier responses."""

    async def scenario() -> tuple[int, str]:
        async with served(FakeServicer(not_found())) as address, AsyncClient(address) as client:
            count = 0
            try:
                async for _ in client.watch("operations/x"):
                    count += 1
            except CallFailed as error:
                return count, error.code
            return count, "OK"

    assert asyncio.run(scenario()) == (1, "NOT_FOUND")


def test_overload_has_a_retry_delay() -> None:
    """The error details and gRPC's pushback trailer have the delay."""

    async def scenario() -> grpc.aio.AioRpcError:
        fake = FakeServicer(Overloaded("full", retry_after=0.7501))
        async with served(fake) as address, grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await begin(channel, "Classify")
            return caught.value

    error = asyncio.run(scenario())
    failed = calls.failed(error)
    assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failed.retry_after == pytest.approx(0.7501)
    assert error.trailing_metadata()["grpc-retry-pushback-ms"] == "751"


def test_grpc_retries_after_the_pushback() -> None:
    """A client that retries RESOURCE_EXHAUSTED waits for the delay of the trailer."""
    config = {
        "methodConfig": [
            {
                "name": [{"service": "topwork.v1.ClassifierService"}],
                "retryPolicy": {
                    "maxAttempts": 2,
                    "initialBackoff": "60s",
                    "maxBackoff": "60s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
    options = [("grpc.service_config", json.dumps(config))]

    async def scenario() -> int:
        fake = FakeServicer(Overloaded("full", retry_after=0.01))
        async with (
            asyncio.timeout(SOON),
            served(fake) as address,
            grpc.aio.insecure_channel(address, options) as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await begin(channel, "Classify")
            return fake.calls

    assert asyncio.run(scenario()) == 2


@METHODS
def test_cancelled_call_ends_its_handler(method: str) -> None:
    """When the client cancels, the handler is cancelled and the log line says so."""

    async def scenario() -> None:
        fake = FakeServicer(hangs=True)
        async with served(fake) as address, grpc.aio.insecure_channel(address) as channel:
            started = begin(channel, method)
            await fake.entered.wait()
            started.cancel()
            await asyncio.wait_for(fake.left.wait(), 60)

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [line["code"] for line in logs if line["event"] == "call"] == ["CANCELLED"]


def begin(channel: grpc.aio.Channel, method: str) -> Any:
    """Begin a call, by default with one message, and let all tasks run until they wait."""
    models: model_grpc.ModelServiceAsyncStub = model_grpc.ModelServiceStub(channel)
    if method == "WatchOperation":
        return models.WatchOperation(model_pb.WatchOperationRequest(name="operations/x"))
    if method == "AddClass":
        return models.AddClass(iter([change_pb.AddClassRequest()]))
    classifier: classify_grpc.ClassifierServiceAsyncStub
    classifier = classify_grpc.ClassifierServiceStub(channel)
    return classifier.Classify(classify_pb.ClassifyRequest())


def test_long_error_text_arrives_with_its_code() -> None:
    """An error text with a client's long value in it arrives with its code."""
    name = "models/" + "x" * 20_000
    failed, _ = ask(FakeServicer(NotFound(f"no {name}", kind="model", resource=name)), "Classify")
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason) == ("NOT_FOUND", "NOT_FOUND")


def test_error_text_arrives_with_any_characters() -> None:
    """An error text with any characters, line breaks too, arrives unchanged."""
    text = "label 'Löwenzahn\n🌼' is there"
    failed, _ = ask(FakeServicer(TopworkError(text)), "Classify")
    assert str(failed) == text


def test_health_checks_are_not_logged() -> None:
    """Health checks need no rule, and are not logged."""

    async def scenario() -> int:
        async with served(FakeServicer()) as address, grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest())).status)

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == health_pb2.HealthCheckResponse.SERVING
    assert not logs


def test_unknown_method_is_unimplemented() -> None:
    """GRPC itself answers calls of unknown methods."""

    async def scenario() -> grpc.StatusCode:
        async with served(FakeServicer()) as address, grpc.aio.insecure_channel(address) as channel:
            method: Any = channel.unary_unary("/topwork.v1.ModelService/Forget")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"")
            return caught.value.code()

    assert asyncio.run(scenario()) is grpc.StatusCode.UNIMPLEMENTED


def few(count: int) -> Slots:
    """Return slots for few calls."""
    return Slots(count, calls="calls", reason="TOO_MANY_CALLS", retry_after=1.0)


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    """Return an access file that knows a and b; the limits of b follow."""
    entries = (
        f"[principals.{name}]\ntokens = ['{token.entry}']\ntrain = ['*']\n"
        for name, token in TOKENS.items()
    )
    path = tmp_path / "access.toml"
    path.write_text("".join(entries))
    return path


async def interceptor_with_access(access_file: Path) -> Interceptor:
    """Return an interceptor with an access file."""
    access = Access(access_file)
    await access.start()
    return Interceptor(Telemetry(), access)


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text in a file."""
    path.write_text(path.read_text().replace(old, new))


async def until(look: Callable[[], bool]) -> None:
    """Return as soon as ``look`` returns true."""
    while not look():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.001)


def bearer(name: str) -> tuple[tuple[str, str]]:
    """Return the metadata of somebody's calls."""
    return (("authorization", f"Bearer {TOKENS[name].token}"),)


async def reason(channel: grpc.aio.Channel, name: str, images: int = 1) -> str:
    """Return why somebody's Classify call fails, or OK."""
    stub: classify_grpc.ClassifierServiceAsyncStub = classify_grpc.ClassifierServiceStub(channel)
    request = classify_pb.ClassifyRequest(model="models/x", images=[b""] * images)
    try:
        await stub.Classify(request, metadata=bearer(name), timeout=SOON)
    except grpc.aio.AioRpcError as error:
        return str(calls.failed(error).reason)
    return "OK"


@pytest.mark.parametrize("error", [None, not_found, lambda: ZeroDivisionError("a bug")])
def test_limits_are_freed_when_a_call_ends(
    access_file: Path, error: Callable[[], Exception] | None
) -> None:
    """Images and concurrent calls are free again when the call has ended, in any way."""
    with access_file.open("a") as file:
        file.write("limits = { calls = 1, images = 3 }\n")

    async def scenario() -> tuple[set[str], list[str]]:
        interceptor = await interceptor_with_access(access_file)
        fake = FakeServicer()
        async with (
            served(fake, interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            ended = set()
            for _ in range(3):
                fake.error = error() if error is not None else None
                ended.add(await reason(channel, "b", images=2))
            fake.error, fake.hangs = None, True
            fake.entered.clear()
            call = asyncio.ensure_future(reason(channel, "b", images=2))
            await fake.entered.wait()
            refused = [await reason(channel, "b", images=2) for _ in range(3)]
            call.cancel()
            await fake.left.wait()
            fake.hangs = False
            refused.append(await reason(channel, "b", images=2))
        return ended, refused

    ended, refused = asyncio.run(scenario())
    assert len(ended) == 1
    assert not {"TOO_MANY_CALLS", "TOO_MANY_IMAGES_AT_A_TIME"} & ended
    assert refused == [*["TOO_MANY_CALLS"] * 3, "OK"]  # what was refused gives nothing back


def test_concurrent_images_count_over_all_calls(access_file: Path) -> None:
    """Concurrent calls of a caller share its limit of images."""
    with access_file.open("a") as file:
        file.write("limits = { images = 3 }\n")

    async def scenario() -> list[str]:
        interceptor = await interceptor_with_access(access_file)
        fake = FakeServicer(hangs=True)
        async with (
            served(fake, interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            call = asyncio.ensure_future(reason(channel, "b", images=2))
            await fake.entered.wait()
            fake.hangs = False
            found = [await reason(channel, "b", images=images) for images in (2, 1, 2, 1, 2)]
            call.cancel()
        return found

    refused = "TOO_MANY_IMAGES_AT_A_TIME"
    assert asyncio.run(scenario()) == [refused, "OK", refused, "OK", refused]


def test_caller_with_many_calls_leaves_slots_to_others(access_file: Path) -> None:
    """However many calls one caller has open, another caller has slots; ended calls free theirs."""

    async def scenario() -> list[str]:
        interceptor = await interceptor_with_access(access_file)
        interceptor.calls.slots = few(4)
        fake = FakeServicer(hangs=True)
        async with (
            served(fake, interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            waiting = [asyncio.ensure_future(reason(channel, "a")) for _ in range(2)]
            await until(lambda: fake.calls == 2)
            fake.hangs = False
            found = [await reason(channel, name) for name in ("a", "b", "a")]
            for call in waiting:
                call.cancel()
            await until(lambda: not interceptor.calls.slots.held("a"))
            found.append(await reason(channel, "a"))
        return found

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == ["TOO_MANY_CALLS", "OK", "TOO_MANY_CALLS", "OK"]
    lines = [line for line in logs if line["event"] == "call"]
    assert [line["principal"] for line in lines[:3]] == ["a", "b", "a"]


def test_health_watches_have_separate_slots() -> None:
    """A host that uses up the slots of health is refused more health calls, and no others."""

    async def scenario() -> tuple[str, int]:
        interceptor = Interceptor(Telemetry(), Access(None))
        interceptor.calls.open_slots = few(2)
        interceptor.calls.slots = few(2)
        async with (
            served(FakeServicer(), interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
            AsyncClient(address) as client,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest())
            revision = (await client.classify("x", [b"photo"])).revision
            watch.cancel()
            await until(lambda: not interceptor.calls.open_slots.held("ipv4:127.0.0.1"))
            await stub.Check(health_pb2.HealthCheckRequest())
            return calls.failed(caught.value).reason, revision

    assert asyncio.run(scenario()) == ("TOO_MANY_CALLS", 3)


@pytest.mark.parametrize("method", ["Classify", "StreamClassify", "Check"])
def test_long_messages_are_read_at_a_limited_rate(method: str) -> None:
    """Every message waits for its caller's turn: health, unary calls and streams."""
    ticks = itertools.count(step=0.05)  # so long does each message seem to take

    async def scenario() -> list[str]:
        interceptor = Interceptor(Telemetry(), Access(None))
        interceptor.calls.reading = Reading(clock=lambda: next(ticks))
        async with (
            served(FakeServicer(), interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            if method == "Check":
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            elif method == "Classify":
                await begin(channel, method)
            else:
                stub: classify_grpc.ClassifierServiceAsyncStub
                stub = classify_grpc.ClassifierServiceStub(channel)
                await stub.StreamClassify(iter([classify_pb.StreamClassifyRequest()])).read()
        return [*interceptor.calls.reading._next]

    assert asyncio.run(scenario()) == ["ipv4:127.0.0.1"]


def test_stream_ends_at_next_message_after_token_is_revoked(access_file: Path) -> None:
    """The stream of a revoked token ends at its next message; streams of other callers continue."""

    async def scenario() -> dict[str, list[int | str]]:
        interceptor = await interceptor_with_access(access_file)
        found: dict[str, list[int | str]] = {"a": [], "b": []}
        async with (
            served(FakeServicer(), interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: classify_grpc.ClassifierServiceAsyncStub
            stub = classify_grpc.ClassifierServiceStub(channel)
            streams = {name: stub.StreamClassify(metadata=bearer(name)) for name in found}

            async def say(number: int) -> None:
                for name, stream in streams.items():
                    try:
                        await stream.write(classify_pb.StreamClassifyRequest(id=number))
                        answer: Any = await stream.read()
                        found[name].append(answer.id)
                    except grpc.aio.AioRpcError as error:
                        found[name].append(calls.failed(error).reason)

            await say(1)
            replace(access_file, TOKENS["a"].entry, tokens.make().entry)
            interceptor.calls.access._apply(interceptor.calls.access._read(access_file))
            await say(2)
            for stream in streams.values():
                stream.cancel()
        return found

    assert asyncio.run(scenario()) == {"a": [1, "CREDENTIALS_UNKNOWN"], "b": [1, 2]}


def test_server_is_idle_without_calls() -> None:
    """Calls keep the server from being idle until they end; health watches do not."""

    async def scenario() -> list[bool]:
        interceptor = Interceptor(Telemetry(), Access(None))
        fake = FakeServicer(hangs=True)
        idle = [interceptor.calls.idle.is_set()]
        async with (
            served(fake, interceptor) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            idle.append(interceptor.calls.idle.is_set())
            first, second = begin(channel, "Classify"), begin(channel, "WatchOperation")
            await until(lambda: fake.calls == 2)
            idle.append(interceptor.calls.idle.is_set())
            first.cancel()
            await fake.left.wait()
            idle.append(interceptor.calls.idle.is_set())
            second.cancel()
            async with asyncio.timeout(SOON):
                await interceptor.calls.idle.wait()
        return idle

    assert asyncio.run(scenario()) == [True, True, False, False]
