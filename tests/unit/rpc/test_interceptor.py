"""Around every call: errors become statuses, and one line is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from topwork.errors import NotFound, Overloaded, TopworkError
from topwork.rpc.access import Access
from topwork.rpc.client import AsyncClient, CallFailed
from topwork.rpc.interceptor import Interceptor
from topwork.telemetry import Telemetry
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc


def missing() -> NotFound:
    """Return an error; a new one each time, since a raised one holds on to the server."""
    return NotFound("there is no model 'models/x'", kind="model", resource="models/x")


class Fake(classify_grpc.ClassifierServiceServicer, model_grpc.ModelServiceServicer):
    """Services whose methods all do the same: raise ``error``, or answer, or hang."""

    def __init__(self, error: BaseException | None = None, *, hangs: bool = False) -> None:
        self.error = error
        self.hangs = hangs
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    async def act(self) -> None:
        """Do it."""
        self.entered.set()
        try:
            if self.hangs:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
        finally:
            self.left.set()

    async def GetModel(self, request: Any, context: Any) -> model_pb.Model:
        """Is not asked for."""
        raise NotImplementedError

    async def ListModels(self, request: Any, context: Any) -> model_pb.ListModelsResponse:
        """Is not asked for."""
        raise NotImplementedError

    async def Classify(self, request: Any, context: Any) -> classify_pb.ClassifyResponse:
        """Answer one with one."""
        await self.act()
        return classify_pb.ClassifyResponse(revision=3)

    async def StreamClassify(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[classify_pb.StreamClassifyResponse]:
        """Is not asked for."""
        raise NotImplementedError
        yield  # makes it a generator

    async def AddClass(self, request_iterator: Any, context: Any) -> Any:
        """Answer many with one."""
        await self.act()
        return operations_pb2.Operation(name="operations/x")

    async def AddExamples(self, request_iterator: Any, context: Any) -> Any:
        """Is not asked for."""
        raise NotImplementedError

    async def ListRevisions(self, request: Any, context: Any) -> model_pb.ListRevisionsResponse:
        """Is not asked for."""
        raise NotImplementedError

    async def RemoveClass(self, request: Any, context: Any) -> Any:
        """Is not asked for."""
        raise NotImplementedError

    async def RenameClass(self, request: Any, context: Any) -> Any:
        """Is not asked for."""
        raise NotImplementedError

    async def Retrain(self, request: Any, context: Any) -> Any:
        """Is not asked for."""
        raise NotImplementedError

    async def Rollback(self, request: Any, context: Any) -> model_pb.Model:
        """Is not asked for."""
        raise NotImplementedError

    async def PinRevision(self, request: Any, context: Any) -> model_pb.Model:
        """Is not asked for."""
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
async def served(fake: Fake) -> AsyncIterator[str]:
    """Serve a fake on a free port and yield the address."""
    server = grpc.aio.server(interceptors=[Interceptor(Telemetry(), Access(None))])
    classify_grpc.add_ClassifierServiceServicer_to_server(fake, server)
    model_grpc.add_ModelServiceServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def call(client: AsyncClient, method: str) -> list[Any]:
    """Call a method and return its answers."""
    if method == "Classify":
        return [await client.classify("x", [b"photo"])]
    if method == "AddClass":
        return [await client.add_class("x", "label", [("a photo", b"photo")])]
    return [operation async for operation in client.watch("operations/x")]


def ask(fake: Fake, method: str) -> tuple[list[Any] | CallFailed, list[Any]]:
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
def test_an_expected_error_reaches_the_client(method: str) -> None:
    """Whatever a call's arity: code, text and details are those of the error."""
    failed, logs = ask(Fake(missing()), method)
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason, str(failed)) == ("NOT_FOUND", "NOT_FOUND", str(missing()))
    assert len(failed.status.details) == 2
    (line,) = logs
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "NOT_FOUND")
    assert line["error"] == str(missing())


@METHODS
@pytest.mark.parametrize(
    "make",
    [
        lambda: ZeroDivisionError("secret"),
        lambda: ExceptionGroup("secret", [ValueError("secret")]),
        lambda: TimeoutError("secret"),
    ],
)
def test_an_unexpected_error_is_for_the_log_only(
    method: str, make: Callable[[], Exception]
) -> None:
    """The client gets fixed text, the log the error with its traceback."""
    error = make()
    failed, logs = ask(Fake(error), method)
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason) == ("INTERNAL", "INTERNAL")
    assert str(failed) == "internal error; see the server's log"
    assert "secret" not in str(failed.status)
    unexpected, access = logs
    assert unexpected["exc_info"] is error
    assert error.__traceback__ is not None
    assert (unexpected["log_level"], access["code"]) == ("error", "INTERNAL")


@METHODS
def test_one_line_a_call(method: str) -> None:
    """A call that goes well is one line: method, code, time and peer."""
    answers, logs = ask(Fake(), method)
    assert isinstance(answers, list)
    assert len(answers) == 1
    (line,) = logs
    service = "ClassifierService" if method == "Classify" else "ModelService"
    assert line["method"] == f"/topwork.v1.{service}/{method}"
    assert (line["event"], line["code"], line["log_level"]) == ("call", "OK", "info")
    assert line["milliseconds"] >= 0
    assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_an_answer_before_the_error_arrives() -> None:
    """A stream that fails later has delivered what it had by then."""

    async def scenario() -> tuple[int, str]:
        async with served(Fake(missing())) as address, AsyncClient(address) as client:
            count = 0
            try:
                async for _ in client.watch("operations/x"):
                    count += 1
            except CallFailed as error:
                return count, error.code
            return count, "OK"

    assert asyncio.run(scenario()) == (1, "NOT_FOUND")


def test_the_delay_of_an_overload_reaches_the_client() -> None:
    """A client reads from the error when a retry makes sense."""
    failed, _ = ask(Fake(Overloaded("full", retry_after=0.75)), "Classify")
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failed.retry_after == 0.75


@METHODS
def test_a_client_that_leaves_ends_its_call(method: str) -> None:
    """When the client gives up, the handler is cancelled and the line says so."""

    async def scenario() -> None:
        fake = Fake(hangs=True)
        async with served(fake) as address, grpc.aio.insecure_channel(address) as channel:
            started = begin(channel, method)
            await fake.entered.wait()
            started.cancel()
            await asyncio.wait_for(fake.left.wait(), 60)

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [line["code"] for line in logs if line["event"] == "call"] == ["CANCELLED"]


def begin(channel: grpc.aio.Channel, method: str) -> Any:
    """Return a call that has begun."""
    models: model_grpc.ModelServiceAsyncStub = model_grpc.ModelServiceStub(channel)
    if method == "WatchOperation":
        return models.WatchOperation(model_pb.WatchOperationRequest(name="operations/x"))
    if method == "AddClass":
        return models.AddClass(iter([change_pb.AddClassRequest()]))
    classifier: classify_grpc.ClassifierServiceAsyncStub
    classifier = classify_grpc.ClassifierServiceStub(channel)
    return classifier.Classify(classify_pb.ClassifyRequest())


def test_a_long_text_does_not_hide_the_code() -> None:
    """An error whose text has a client's long value in it still arrives with its code."""
    name = "models/" + "x" * 20_000
    failed, _ = ask(Fake(NotFound(f"no {name}", kind="model", resource=name)), "Classify")
    assert isinstance(failed, CallFailed)
    assert (failed.code, failed.reason) == ("NOT_FOUND", "NOT_FOUND")


def test_texts_are_not_only_ascii() -> None:
    """A text with any characters, line ends too, arrives as it is."""
    text = "label 'Löwenzahn\n🌼' is there"
    failed, _ = ask(Fake(TopworkError(text)), "Classify")
    assert str(failed) == text


def test_health_is_left_alone() -> None:
    """Health checks follow their own rules, and fill no log."""

    async def scenario() -> int:
        async with served(Fake()) as address, grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest())).status)

    with capture_logs() as logs:
        assert asyncio.run(scenario()) == health_pb2.HealthCheckResponse.SERVING
    assert not logs


def test_a_method_that_is_not_there_is_unimplemented() -> None:
    """A call of an unknown method passes through to gRPC's own answer."""

    async def scenario() -> grpc.StatusCode:
        async with served(Fake()) as address, grpc.aio.insecure_channel(address) as channel:
            method: Any = channel.unary_unary("/topwork.v1.ModelService/Forget")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"")
            return caught.value.code()

    assert asyncio.run(scenario()) is grpc.StatusCode.UNIMPLEMENTED
