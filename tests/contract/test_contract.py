"""The published contract and the server agree."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support import servers, tiny
from support.servers import Running

from topwork.inference import inference_service_pb2
from topwork.rpc.open_inference.servicer import OpenInferenceServicer
from topwork.rpc.server import SERVICES
from topwork.rpc.servicers.classifier import ClassifierServicer
from topwork.rpc.servicers.models import ModelServicer
from topwork.rpc.servicers.operations import OperationsServicer
from topwork.rpc.servicers.review import ReviewServicer
from topwork.v1 import classifier_service_pb2, model_service_pb2, review_service_pb2

SERVICERS: dict[str, type] = {
    "topwork.v1.ClassifierService": ClassifierServicer,
    "topwork.v1.ModelService": ModelServicer,
    "topwork.v1.ReviewService": ReviewServicer,
    "google.longrunning.Operations": OperationsServicer,
    "inference.GRPCInferenceService": OpenInferenceServicer,
}
METHODS: list[MethodDescriptor] = [
    method
    for module in (
        classifier_service_pb2,
        inference_service_pb2,
        model_service_pb2,
        operations_pb2,
        review_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server without a worker."""
    repository = tiny.repository(tmp_path_factory.mktemp("contract") / "repository")
    with servers.running(repository.root, worker=False) as started:
        yield started


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    """Yield a channel to the server."""
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def test_every_service_has_a_servicer() -> None:
    """The descriptors, the servicers and the server's list have the same services."""
    described = {method.containing_service.full_name for method in METHODS}
    assert described == set(SERVICERS) == set(SERVICES)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_is_implemented(method: MethodDescriptor) -> None:
    """The servicer itself defines each rpc, as a generator if the rpc streams responses."""
    implementation = vars(SERVICERS[method.containing_service.full_name]).get(method.name)
    assert implementation is not None
    assert inspect.isasyncgenfunction(implementation) == method.server_streaming
    assert inspect.iscoroutinefunction(implementation) == (not method.server_streaming)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_can_be_called(channel: grpc.Channel, method: MethodDescriptor) -> None:
    """An empty request succeeds or is InvalidArgument; it is never an unexpected error."""
    kind = ("stream" if method.client_streaming else "unary") + (
        "_stream" if method.server_streaming else "_unary"
    )
    call = getattr(channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    request = GetMessageClass(method.input_type)()
    begin = call if method.server_streaming else call.future
    begun = begin(iter([request]) if method.client_streaming else request, timeout=30)
    if method.client_streaming and method.server_streaming:  # each message has its own answer
        assert [answer.error.code for answer in begun] == [code_pb2.INVALID_ARGUMENT]
    has_no_required_field = method.name in {
        "ListBackbones",
        "ListModels",
        "ListOperations",
        "ModelStatistics",
        "RepositoryIndex",
        "ServerLive",
        "ServerMetadata",
        "ServerReady",
        "StreamClassify",
    }
    expected = grpc.StatusCode.OK if has_no_required_field else grpc.StatusCode.INVALID_ARGUMENT
    assert begun.code() is expected


def test_reflection_lists_every_service(channel: grpc.Channel) -> None:
    """Tools such as grpcurl find all services, health and reflection among them."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    listed = {service.name for service in answer.list_services_response.service}
    others = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert listed == set(SERVICES) | others


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_describes_every_service(channel: grpc.Channel, service: str) -> None:
    """Reflection returns the file that defines a service."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(content)
        for content in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert service in {f"{file.package}.{each.name}" for file in files for each in file.service}


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_is_serving(channel: grpc.Channel, service: str) -> None:
    """The process and each service are SERVING."""
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    """A misspelt service is NOT_FOUND instead of SERVING."""
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="topwork.v1.Classifier"))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
