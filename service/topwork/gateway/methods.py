"""Table of the rpcs that have a google.api.http rule, read from the descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from google.api import annotations_pb2, http_pb2
from google.longrunning import operations_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from topwork.gateway.templates import OTHER_RULES, Template, parse
from topwork.v1 import classifier_service_pb2, model_service_pb2, review_service_pb2

FILES = (classifier_service_pb2, model_service_pb2, review_service_pb2, operations_pb2)
"""The modules whose services the gateway offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An rpc and its HTTP rule."""

    rpc: str
    """Path of the rpc, such as ``/topwork.v1.ModelService/GetModel``."""
    request: type[Message]
    response: type[Message]
    reads_stream: bool
    writes_stream: bool
    verb: str
    """HTTP method, such as ``GET``."""
    template: Template
    has_body: bool
    """True: the body sets all fields that the path does not; False: query parameters do."""


def descriptor(method: Method) -> Descriptor:
    """Return the descriptor of a method's request."""
    described: Any = method.request.DESCRIPTOR
    return cast("Descriptor", described)


def services() -> Iterator[ServiceDescriptor]:
    """Yield the services of FILES."""
    for file in FILES:
        yield from file.DESCRIPTOR.services_by_name.values()


def methods(offered: Iterable[ServiceDescriptor]) -> list[Method]:
    """Return the methods of some services that have a rule, in their order."""
    return [
        method_of(method, rule)
        for service in offered
        for method in service.methods
        if (rule := rule_of(method)) is not None
    ]


def rule_of(method: MethodDescriptor) -> http_pb2.HttpRule | None:
    """Return the HTTP rule of an rpc, or None."""
    options = method.GetOptions()
    if options.HasExtension(annotations_pb2.http):
        return options.Extensions[annotations_pb2.http]
    return OTHER_RULES.get(method.full_name)


def method_of(method: MethodDescriptor, rule: http_pb2.HttpRule | None = None) -> Method:
    """Return an rpc with its rule; without one for routes that are written by hand."""
    rule = rule or http_pb2.HttpRule(get="")
    verb = rule.WhichOneof("pattern")
    assert rule.body in {"", "*"}, f"{method.full_name}: a body that is one field is not supported"
    return Method(
        rpc=f"/{method.containing_service.full_name}/{method.name}",
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        reads_stream=method.client_streaming,
        writes_stream=method.server_streaming,
        verb=verb.upper(),
        template=parse(getattr(rule, verb)),
        has_body=bool(rule.body),
    )
