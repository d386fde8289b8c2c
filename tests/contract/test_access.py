"""Authentication and authorization of every rpc of the server."""

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
from support.pictures import picture, pictures
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

TOKENS = {name: tokens.make() for name in ("nobody", *ROLES, "elsewhere", "tenant", "slow")}


class HandlerRecorder:
    """A server that only records the paths of its handlers."""

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
    """Return the paths of all methods that the server registers."""
    recorder = HandlerRecorder()
    server = Server(ServeConfig(repository=Path("repository"), channelz=True))
    server.register(recorder)  # type: ignore[arg-type]  # has all methods that are called
    return sorted(recorder.methods)


METHODS = registered()
PROTECTED = [path for path in METHODS if not path.startswith(OPEN)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with two models, and a principal for every role."""
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
        [principals.tenant]
        tokens = ["{TOKENS["tenant"].entry}"]
        train = ["tenant-*"]
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
    """Yield a channel to the server."""
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def operation(server: Running) -> str:
    """Return the name of an operation of the model ``colours``; no worker runs it."""
    with client_of(server, "train") as client:
        return str(client.retrain("colours").name)


def client_of(server: Running, principal: str) -> Client:
    """Return a client with a principal's token."""
    return Client(server.address, Credentials(token=TOKENS[principal].token))


def described(path: str) -> MethodDescriptor:
    """Return the descriptor of a method."""
    _, service, method = path.split("/")
    descriptor: MethodDescriptor = Default().FindServiceByName(service).methods_by_name[method]
    return descriptor


def call(
    channel: grpc.Channel, path: str, principal: str | None, request: Message | None = None
) -> CallFailed | None:
    """Call a method with a principal's token; return the error, None on success."""
    empty = GetMessageClass(described(path).input_type)()
    method: Any = channel.stream_stream(
        path, request_serializer=lambda message: message.SerializeToString()
    )
    metadata = () if principal is None else [("authorization", f"Bearer {TOKENS[principal].token}")]
    try:
        list(method(iter([request or empty]), metadata=metadata, timeout=30))
    except grpc.RpcError as error:
        return calls.failed(error)
    return None


def request_for(path: str, model: str) -> Message:
    """Return a request with no field but the model."""
    request: Any = GetMessageClass(described(path).input_type)()
    parts = {"config", "policy"}.intersection(request.DESCRIPTOR.fields_by_name)
    holder = getattr(request, parts.pop()) if parts else request
    field = next(
        name for name in ("model", "model_name", "name") if name in holder.DESCRIPTOR.fields_by_name
    )
    prefix = "models/" if path.startswith("/topwork.") else ""
    setattr(holder, field, prefix + model)
    message: Message = request
    return message


def audit_line(server: Running, method: str, fields: dict[str, str]) -> dict[str, Any]:
    """Wait for the audit line of a method with these fields, and return it."""
    return servers.eventually(
        lambda: next(
            (
                fact
                for fact in server.log_entries
                if fact["event"] == "audit"
                and fact["method"].endswith(method)
                and fields.items() <= fact.items()
            ),
            None,
        )
    )


def test_every_method_has_a_rule() -> None:
    """A new rpc needs a row in RULES."""
    assert {path for path in METHODS if path.startswith(OPEN)} == {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
    assert set(PROTECTED) <= set(RULES)
    listed = {path.split("/")[1] for path in METHODS}
    assert {"topwork.v1.ModelService", "google.longrunning.Operations"} <= listed
    for service in listed:
        methods = Default().FindServiceByName(service).methods
        assert {f"/{service}/{method.name}" for method in methods} <= set(METHODS)


@pytest.mark.parametrize("path", PROTECTED)
def test_call_without_credentials_is_refused(channel: grpc.Channel, path: str) -> None:
    """The error's details have the reason."""
    error = call(channel, path, None)
    assert error is not None
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")


def test_unauthenticated_call_is_refused_before_request_is_read(channel: grpc.Channel) -> None:
    """A caller without credentials cannot fill the server's memory."""
    released = threading.Event()

    def blocked() -> Iterator[bytes]:
        released.wait(60)
        yield b""

    method: Any = channel.stream_unary("/topwork.v1.ClassifierService/Classify")
    classify = method.future(blocked(), timeout=30)
    try:
        assert classify.code() is grpc.StatusCode.UNAUTHENTICATED
        assert not released.is_set()
    finally:
        released.set()


@pytest.mark.parametrize("path", PROTECTED)
def test_lower_role_is_refused(channel: grpc.Channel, path: str) -> None:
    """A method admits principals with its role or a higher role, and no others."""
    needed = ROLES.index(RULES[path].role)
    for principal in ("nobody", *ROLES[:needed]):
        error = call(channel, path, principal)
        assert error is not None, principal
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
    for principal in ROLES[needed:]:
        error = call(channel, path, principal)
        code = None if error is None else error.code
        assert code not in {"PERMISSION_DENIED", "UNAUTHENTICATED"}, principal


@pytest.mark.parametrize("path", [path for path in PROTECTED if RULES[path].model_of is not None])
def test_forbidden_model_is_indistinguishable_from_missing_model(
    channel: grpc.Channel, path: str
) -> None:
    """The error of a model outside the role's scope does not show whether the model exists."""
    texts = set()
    for model in ("colours", "nothing"):
        error = call(channel, path, "elsewhere", request_for(path, model))
        assert error is not None
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "MODEL_FORBIDDEN")
        texts.add(str(error).replace(model, "..."))
    assert len(texts) == 1
    error = call(channel, path, "elsewhere", request_for(path, "shapes"))
    assert error is None or error.code != "PERMISSION_DENIED"


def test_neighbours_need_the_role_train(server: Running) -> None:
    """Names and previews of training images are confidential; the map is not."""
    image = picture("blue", 50)
    with client_of(server, "classify") as client:
        assert client.explain("colours", image).neighbours == ()
        assert client.explain("colours", image, neighbours=0).label == "blue"
        error = servers.failure(lambda: client.explain("colours", image, neighbours=1))
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "MODEL_FORBIDDEN")
        assert "neighbours is 1, but 'classify' lacks role 'train'" in error.message
    with client_of(server, "train") as client:
        assert len(client.explain("colours", image).neighbours) == 5
        assert len(client.explain("colours", image, neighbours=2).neighbours) == 2
    assert audit_line(server, "ClassifierService/Explain", {"principal": "train"})


def test_each_message_of_a_stream_is_authorized(channel: grpc.Channel) -> None:
    """A message about a forbidden model fails alone; the stream continues."""
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
    responses = stub(iter(requests), metadata=metadata, timeout=30)
    answers = {response.id: response for response in responses}
    reasons = [CallFailed(answers[number].error).reason for number in (1, 2)]
    assert reasons == ["MODEL_FORBIDDEN"] * 2
    assert [len(answers[number].response.results) for number in (0, 3)] == [1, 1]


def test_list_models_omits_forbidden_models(server: Running) -> None:
    """A caller sees only the models of its scope."""
    with client_of(server, "elsewhere") as client:
        assert [model.name for model in client.models()] == ["models/shapes"]
    with client_of(server, "classify") as client:
        assert [model.name for model in client.models()] == ["models/colours", "models/shapes"]


def test_open_inference_omits_forbidden_models(channel: grpc.Channel) -> None:
    """RepositoryIndex and ModelStatistics show only models of the caller's scope."""
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


def test_models_are_made_under_names_of_the_scope(server: Running) -> None:
    """A tenant makes models under its pattern, from no other tenant's, and deletes none."""
    with client_of(server, "tenant") as client:
        assert [stored.backbone.name for stored in client.backbones()] == ["tiny"]
        client.create_model("tenant-a")
        for refused in (
            lambda: client.create_model("other"),
            lambda: client.create_model("tenant-b", like="colours"),
            lambda: client.copy_model("colours", "tenant-b"),
            lambda: client.copy_model("tenant-a", "other"),
        ):
            error = servers.failure(refused)
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "MODEL_FORBIDDEN")
        client.create_model("tenant-b", like="tenant-a")
        assert servers.failure(lambda: client.delete_model("tenant-a")).reason == "ROLE_MISSING"
        assert servers.failure(lambda: client.undelete_model("tenant-a")).reason == "ROLE_MISSING"
        assert [model.name for model in client.models()] == [
            "models/tenant-a",
            "models/tenant-b",
        ]
    with client_of(server, "admin") as client:
        for name in ("tenant-a", "tenant-b"):
            client.delete_model(name)


@pytest.mark.parametrize(
    "method", ["GetOperation", "WaitOperation", "CancelOperation", "DeleteOperation"]
)
def test_operation_of_forbidden_model_is_not_found(
    channel: grpc.Channel, operation: str, method: str
) -> None:
    """The error equals that of an operation that does not exist."""
    path = f"/google.longrunning.Operations/{method}"
    texts = set()
    for name in (operation, "operations/00000000-0000-4000-8000-000000000000"):
        request = GetMessageClass(described(path).input_type)(name=name)
        error = call(channel, path, "elsewhere", request)
        assert error is not None
        assert error.code == "NOT_FOUND"
        texts.add((str(error).replace(name, "..."), len(error.status.details)))
    assert len(texts) == 1


def test_watch_operation_of_forbidden_model_is_not_found(server: Running, operation: str) -> None:
    """WatchOperation shows no operation of a model outside the caller's scope."""
    with client_of(server, "elsewhere") as client:
        error = servers.failure(lambda: list(client.watch(operation)))
    assert error.code == "NOT_FOUND"


def test_list_operations_omits_forbidden_models(server: Running, operation: str) -> None:
    """A filter for a forbidden model is refused."""
    with client_of(server, "elsewhere") as client:
        own = client.retrain("shapes").name
        listed = list(client.operations())
        assert own in {each.name for each in listed}
        assert {progress(each).model for each in listed} == {"models/shapes"}
        error = servers.failure(lambda: list(client.operations('model = "models/colours"')))
        assert error.reason == "MODEL_FORBIDDEN"
    with client_of(server, "train") as client:
        assert {operation, own} <= {each.name for each in client.operations()}


def test_reused_request_id_does_not_reveal_its_model(server: Running, operation: str) -> None:
    """REQUEST_ID_REUSED names neither the model nor the operation of the first request."""
    with client_of(server, "elsewhere") as client:
        error = servers.failure(
            lambda: client.retrain("shapes", request_id=operation.removeprefix("operations/"))
        )
    assert error.reason == "REQUEST_ID_REUSED"
    assert "colours" not in str(error.status)


def test_methods_without_model_in_rule_are_tested_here() -> None:
    """The services of these methods authorize each model; the tests above cover them."""
    unruled = {path for path in PROTECTED if RULES[path].model_of is None}
    assert {path for path in unruled if path.startswith(("/topwork.", "/google."))} == {
        "/topwork.v1.ClassifierService/StreamClassify",
        "/topwork.v1.ModelService/ListBackbones",  # of no model
        "/topwork.v1.ModelService/ListModels",
        "/topwork.v1.ModelService/WatchOperation",
        "/google.longrunning.Operations/ListOperations",
        "/google.longrunning.Operations/GetOperation",
        "/google.longrunning.Operations/WaitOperation",
        "/google.longrunning.Operations/CancelOperation",
        "/google.longrunning.Operations/DeleteOperation",
    }


def test_health_needs_no_credentials(channel: grpc.Channel) -> None:
    """Probes have no credentials."""
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_call_above_rate_limit_is_refused_with_retry_info(channel: grpc.Channel) -> None:
    """RetryInfo has the time until the next call is allowed."""
    path = "/topwork.v1.ModelService/ListModels"
    assert call(channel, path, "slow") is None
    error = call(channel, path, "slow")
    assert error is not None
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMIT")
    assert 900 < error.retry_after <= 1000


def test_every_change_is_in_the_audit_log(server: Running) -> None:
    """A line has principal, method, model, operation and outcome, for refused changes too."""
    with client_of(server, "train") as client:
        name = client.rename_class("colours", "blue", "azure").name
        client.cancel(name)
        servers.failure(lambda: client.rollback("colours", 1))
    for method, model, operation, outcome in (
        ("ModelService/RenameClass", "colours", name, "OK"),
        ("Operations/CancelOperation", "colours", name, "OK"),
        ("ModelService/Rollback", "", "", "PERMISSION_DENIED"),
    ):
        fields = {"principal": "train", "operation": operation, "outcome": outcome}
        line = audit_line(server, method, fields)
        assert line["model"] == model
        assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_upload_is_in_the_audit_log(server: Running) -> None:
    """The model of an upload is that of its first message."""
    with client_of(server, "train") as client:
        images = [(f"{number}.png", photo) for number, photo in enumerate(pictures("violet", 5))]
        name = client.add_class("shapes", "violet", images).name
    line = audit_line(server, "ModelService/AddClass", {"operation": name, "outcome": "OK"})
    assert (line["principal"], line["model"]) == ("train", "shapes")


def test_no_secret_is_in_the_log(server: Running) -> None:
    """Neither valid nor invalid tokens are logged."""
    with Client(server.address, Credentials(token=f"{TOKENS['admin'].token}x")) as client:
        assert servers.failure(lambda: client.model("colours")).reason == "CREDENTIALS_UNKNOWN"
    for new in TOKENS.values():
        assert new.token not in server.log
        assert new.token.split("_", 2)[2] not in server.log  # a secret may have "_", too
        assert new.entry.rpartition(":")[2] not in server.log


def test_access_file_is_reloaded(tmp_path: Path) -> None:
    """Rights follow the file; an unusable file changes nothing."""
    repository = tiny.repository(tmp_path / "repository")
    access = tmp_path / "access.toml"
    first, second = tokens.make(), tokens.make()
    access.write_text(f"[principals.a]\ntokens = ['{first.entry}']\nclassify = ['*']\n")
    with servers.running(repository.root, worker=False, access=str(access)) as started:

        def reason(new: tokens.NewToken) -> str:
            with Client(started.address, Credentials(token=new.token)) as client:
                try:
                    client.model("colours")
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
