"""Nobody calls anything that they may not: every rpc that the server has, one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import servers, tiny
from support.pictures import pictures
from support.servers import Running

from topwork import CallFailed, Client, progress
from topwork.access import tokens
from topwork.access.principals import ROLES
from topwork.access.rules import OPEN, RULES
from topwork.bundle.store import Repository
from topwork.client import calls
from topwork.client.credentials import Credentials
from topwork.config import ServeConfig
from topwork.inference import inference_service_pb2 as inference_pb
from topwork.inference import inference_service_pb2_grpc as inference_grpc
from topwork.rpc.server import Server
from topwork.v1 import classifier_service_pb2 as classify_pb

TOKENS = {name: tokens.make() for name in ("nobody", *ROLES, "elsewhere", "slow")}


class Registered:
    """A server that only remembers what it was given."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """See grpc.aio.Server."""
        for handler in handlers:
            self.methods |= set(handler._method_handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """See grpc.aio.Server."""
        self.methods |= {f"/{service}/{method}" for method in handlers}


def registered() -> list[str]:
    """Return the paths of all methods that a server has, whatever services are added to it."""
    server, found = Server(ServeConfig(repository=Path("repository"), channelz=True)), Registered()
    server.register(found)  # type: ignore[arg-type]  # all that it asks of a server
    return sorted(found.methods)


METHODS = registered()
NEEDING = [path for path in METHODS if not path.startswith(OPEN)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with two models, and somebody for every role."""
    directory = tmp_path_factory.mktemp("access")
    repository = tiny.repository(directory / "repository")
    images = {label: pictures(label, 20) for label in ("blue", "green")}
    tiny.publish(Repository(repository.root), "shapes", tiny.embed_pictures(images))
    access = directory / "access.toml"
    access.write_text(
        f"""
        [principals.nobody]
        tokens = ["{TOKENS["nobody"].entry}"]
        [principals.classify]
        tokens = ["{TOKENS["classify"].entry}"]
        classify = ["*"]
        [principals.train]
        tokens = ["{TOKENS["train"].entry}"]
        train = ["*"]
        [principals.admin]
        tokens = ["{TOKENS["admin"].entry}"]
        admin = ["*"]
        [principals.elsewhere]
        tokens = ["{TOKENS["elsewhere"].entry}"]
        admin = ["shapes"]
        [principals.slow]
        tokens = ["{TOKENS["slow"].entry}"]
        admin = ["*"]
        limits.calls_per_second = 0.001
        """
    )
    with servers.running(
        repository.root, worker=False, access=str(access), channelz=True
    ) as started:
        yield started


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    """Yield a channel to it."""
    with grpc.insecure_channel(server.address) as made:
        yield made


@pytest.fixture(scope="module")
def operation(server: Running) -> str:
    """Return the name of an operation of the model ``colours``, which nobody will do."""
    with client(server, "train") as one:
        return str(one.retrain("colours").name)


def client(server: Running, who: str) -> Client:
    """Return a client with somebody's token."""
    return Client(server.address, Credentials(token=TOKENS[who].token))


def described(path: str) -> MethodDescriptor:
    """Return the descriptor of a method."""
    _, service, method = path.split("/")
    found: MethodDescriptor = Default().FindServiceByName(service).methods_by_name[method]
    return found


def ask(
    channel: grpc.Channel, path: str, who: str | None, request: Message | None = None
) -> CallFailed | None:
    """Call a method with somebody's token; return the error, None if there is none."""
    empty = GetMessageClass(described(path).input_type)()
    method: Any = channel.stream_stream(
        path, request_serializer=lambda message: message.SerializeToString()
    )
    metadata = () if who is None else [("authorization", f"Bearer {TOKENS[who].token}")]
    try:
        list(method(iter([request or empty]), metadata=metadata, timeout=30))
    except grpc.RpcError as error:
        return calls.failed(error)
    return None


def about(path: str, model: str) -> Message:
    """Return a request that says nothing but which model it is about."""
    request: Any = GetMessageClass(described(path).input_type)()
    holder = request.config if "config" in request.DESCRIPTOR.fields_by_name else request
    field = next(
        name for name in ("model", "model_name", "name") if name in holder.DESCRIPTOR.fields_by_name
    )
    prefix = "models/" if path.startswith("/topwork.") else ""
    setattr(holder, field, prefix + model)
    message: Message = request
    return message


def audited(server: Running, method: str, told: dict[str, str]) -> dict[str, Any]:
    """Return the line of the audit that tells this of a method, waiting for it."""
    return servers.eventually(
        lambda: next(
            (
                fact
                for fact in server.log_entries
                if fact["event"] == "audit"
                and fact["method"].endswith(method)
                and told.items() <= fact.items()
            ),
            None,
        )
    )


def test_every_method_has_a_rule() -> None:
    """A new rpc needs a row in the table, and it is not to be forgotten here either."""
    assert {path for path in METHODS if path.startswith(OPEN)} == {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
    assert set(NEEDING) <= set(RULES)
    listed = {path.split("/")[1] for path in METHODS}
    assert {"topwork.v1.ModelService", "google.longrunning.Operations"} <= listed
    for service in listed:
        methods = Default().FindServiceByName(service).methods
        assert {f"/{service}/{one.name}" for one in methods} <= set(METHODS)


@pytest.mark.parametrize("path", NEEDING)
def test_who_shows_nothing_is_refused(channel: grpc.Channel, path: str) -> None:
    """Without credentials no method says anything, and why is in the error's details."""
    error = ask(channel, path, None)
    assert error is not None
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")


def test_who_is_refused_is_not_listened_to(channel: grpc.Channel) -> None:
    """The answer comes before the request: a stranger fills no memory."""
    asked = threading.Event()

    def silent() -> Iterator[bytes]:
        asked.wait(60)
        yield b""

    method: Any = channel.stream_unary("/topwork.v1.ClassifierService/Classify")
    call = method.future(silent(), timeout=30)
    try:
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert not asked.is_set()
    finally:
        asked.set()


@pytest.mark.parametrize("path", NEEDING)
def test_who_has_too_low_a_role_is_refused(channel: grpc.Channel, path: str) -> None:
    """A method lets in who has its role, and nobody below."""
    needed = ROLES.index(RULES[path].role)
    for who in ("nobody", *ROLES[:needed]):
        error = ask(channel, path, who)
        assert error is not None, who
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
    for who in ROLES[needed:]:
        error = ask(channel, path, who)
        assert error is None or error.code not in {"PERMISSION_DENIED", "UNAUTHENTICATED"}, who


@pytest.mark.parametrize("path", [path for path in NEEDING if RULES[path].about is not None])
def test_another_model_is_refused_whether_it_exists_or_not(
    channel: grpc.Channel, path: str
) -> None:
    """What a role is not for cannot be told from what is not there."""
    texts = set()
    for model in ("colours", "nothing"):
        error = ask(channel, path, "elsewhere", about(path, model))
        assert error is not None
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "MODEL_FORBIDDEN")
        texts.add(str(error).replace(model, "..."))
    assert len(texts) == 1
    error = ask(channel, path, "elsewhere", about(path, "shapes"))
    assert error is None or error.code != "PERMISSION_DENIED"


def test_each_message_of_a_stream_is_asked_of(channel: grpc.Channel) -> None:
    """A stream is answered for the models of its caller; other messages are refused alone."""
    stub: Any = channel.stream_stream(
        "/topwork.v1.ClassifierService/StreamClassify",
        request_serializer=classify_pb.StreamClassifyRequest.SerializeToString,
        response_deserializer=classify_pb.StreamClassifyResponse.FromString,
    )
    requests = [
        classify_pb.StreamClassifyRequest(
            id=number,
            request=classify_pb.ClassifyRequest(
                model=f"models/{model}", images=pictures("blue", 1)
            ),
        )
        for number, model in enumerate(("shapes", "colours", "nothing", "shapes"))
    ]
    metadata = [("authorization", f"Bearer {TOKENS['elsewhere'].token}")]
    answers = {one.id: one for one in stub(iter(requests), metadata=metadata, timeout=30)}
    said = [CallFailed(answers[number].error).reason for number in (1, 2)]
    assert said == ["MODEL_FORBIDDEN"] * 2
    assert [len(answers[number].response.results) for number in (0, 3)] == [1, 1]


def test_models_are_listed_for_who_may_ask_them(server: Running) -> None:
    """Others' models are left out, and leave no trace in the pages."""
    with client(server, "elsewhere") as one:
        assert [model.name for model in one.models()] == ["models/shapes"]
    with client(server, "classify") as one:
        assert [model.name for model in one.models()] == ["models/colours", "models/shapes"]


def test_the_open_protocol_tells_of_no_others_models(channel: grpc.Channel) -> None:
    """Index and statistics leave them out, with and without a version."""
    metadata = (("authorization", f"Bearer {TOKENS['elsewhere'].token}"),)
    stub = inference_grpc.GRPCInferenceServiceStub(channel)
    index = stub.RepositoryIndex(inference_pb.RepositoryIndexRequest(), metadata=metadata)
    assert [model.name for model in index.models] == ["shapes"]
    statistics = stub.ModelStatistics(inference_pb.ModelStatisticsRequest(), metadata=metadata)
    assert {model.name for model in statistics.model_stats} == {"shapes"}
    for version in ("", "1"):
        request = inference_pb.ModelStatisticsRequest(name="colours", version=version)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelStatistics(request, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "method", ["GetOperation", "WaitOperation", "CancelOperation", "DeleteOperation"]
)
def test_an_operation_belongs_to_its_model(
    channel: grpc.Channel, operation: str, method: str
) -> None:
    """Another model's operation is as good as none, to the letter."""
    path = f"/google.longrunning.Operations/{method}"
    texts = set()
    for name in (operation, "operations/00000000-0000-4000-8000-000000000000"):
        request = GetMessageClass(described(path).input_type)(name=name)
        error = ask(channel, path, "elsewhere", request)
        assert error is not None
        assert error.code == "NOT_FOUND"
        texts.add((str(error).replace(name, "..."), len(error.status.details)))
    assert len(texts) == 1


def test_another_models_operation_cannot_be_watched(server: Running, operation: str) -> None:
    """WatchOperation is no way around it."""
    with client(server, "elsewhere") as one:
        error = servers.failure(lambda: list(one.watch(operation)))
    assert error.code == "NOT_FOUND"


def test_operations_are_listed_for_who_may_see_them(server: Running, operation: str) -> None:
    """Others' operations are left out; asking for another model's is refused."""
    with client(server, "elsewhere") as one:
        mine = one.retrain("shapes").name
        found = list(one.operations())
        assert mine in {each.name for each in found}
        assert {progress(each).model for each in found} == {"models/shapes"}
        wanted = 'model = "models/colours"'
        error = servers.failure(lambda: list(one.operations(wanted)))
        assert error.reason == "MODEL_FORBIDDEN"
    with client(server, "train") as one:
        assert {operation, mine} <= {each.name for each in one.operations()}


def test_a_request_id_of_another_model_tells_nothing_of_it(server: Running, operation: str) -> None:
    """Who guesses another's request id learns that it is taken, not what for."""
    with client(server, "elsewhere") as one:
        error = servers.failure(
            lambda: one.retrain("shapes", request_id=operation.removeprefix("operations/"))
        )
    assert error.reason == "REQUEST_ID_REUSED"
    assert "colours" not in str(error.status)


def test_all_methods_that_ask_for_themselves_are_tested_here() -> None:
    """Of these no rule says which model they are about: the tests above are theirs."""
    asking = {path for path in NEEDING if RULES[path].about is None}
    assert {path for path in asking if path.startswith(("/topwork.", "/google."))} == {
        "/topwork.v1.ClassifierService/StreamClassify",
        "/topwork.v1.ModelService/ListModels",
        "/topwork.v1.ModelService/WatchOperation",
        "/google.longrunning.Operations/ListOperations",
        "/google.longrunning.Operations/GetOperation",
        "/google.longrunning.Operations/WaitOperation",
        "/google.longrunning.Operations/CancelOperation",
        "/google.longrunning.Operations/DeleteOperation",
    }


def test_health_needs_no_credentials(channel: grpc.Channel) -> None:
    """A probe has none."""
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_who_calls_too_often_is_told_when_to_call_again(channel: grpc.Channel) -> None:
    """The second call within the rate is refused with RetryInfo."""
    path = "/topwork.v1.ModelService/ListModels"
    assert ask(channel, path, "slow") is None
    error = ask(channel, path, "slow")
    assert error is not None
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMIT")
    assert 900 < error.retry_after <= 1000


def test_every_change_is_in_the_audit(server: Running) -> None:
    """Who, what, of which model, which operation, and what came of it; refused ones too."""
    with client(server, "train") as one:
        name = one.rename_class("colours", "blue", "azure").name
        one.cancel(name)
        servers.failure(lambda: one.rollback("colours", 1))
    for method, model, operation, outcome in (
        ("ModelService/RenameClass", "colours", name, "OK"),
        ("Operations/CancelOperation", "colours", name, "OK"),
        ("ModelService/Rollback", "", "", "PERMISSION_DENIED"),
    ):
        told = {"principal": "train", "operation": operation, "outcome": outcome}
        line = audited(server, method, told)
        assert line["model"] == model
        assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_an_upload_is_in_the_audit(server: Running) -> None:
    """The model of an upload is that of its first message."""
    with client(server, "train") as one:
        images = [(f"{number}.png", photo) for number, photo in enumerate(pictures("violet", 5))]
        name = one.add_class("shapes", "violet", images).name
    line = audited(server, "ModelService/AddClass", {"operation": name, "outcome": "OK"})
    assert (line["principal"], line["model"]) == ("train", "shapes")


def test_no_secret_is_in_the_log(server: Running) -> None:
    """Whatever was called, with right and wrong tokens: none was written down."""
    with Client(server.address, Credentials(token=f"{TOKENS['admin'].token}x")) as one:
        assert servers.failure(lambda: one.model("colours")).reason == "CREDENTIALS_UNKNOWN"
    for made in TOKENS.values():
        assert made.token not in server.log
        assert made.token.split("_", 2)[2] not in server.log  # a secret may have "_", too
        assert made.entry.rpartition(":")[2] not in server.log


def test_the_access_file_is_read_again(tmp_path: Path) -> None:
    """Rights come and go with the file; one that cannot be used changes nothing."""
    repository = tiny.repository(tmp_path / "repository")
    access = tmp_path / "access.toml"
    first, second = tokens.make(), tokens.make()
    access.write_text(f"[principals.a]\ntokens = ['{first.entry}']\nclassify = ['*']\n")
    with servers.running(repository.root, worker=False, access=str(access)) as started:

        def reason(made: tokens.NewToken) -> str:
            with Client(started.address, Credentials(token=made.token)) as one:
                try:
                    one.model("colours")
                except CallFailed as error:
                    return str(error.reason)
                return "OK"

        assert (reason(first), reason(second)) == ("OK", "CREDENTIALS_UNKNOWN")
        access.write_text("[principals")
        assert "cannot be used" in started.log_entry("access stays as it was")["error"]
        assert (reason(first), reason(second)) == ("OK", "CREDENTIALS_UNKNOWN")
        access.write_text(f"[principals.b]\ntokens = ['{second.entry}']\nclassify = ['*']\n")
        assert started.log_entry("access")["principals"] == 1
        assert (reason(first), reason(second)) == ("CREDENTIALS_UNKNOWN", "OK")
