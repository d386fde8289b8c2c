"""Generator of docs/api.md from the comments of the .proto files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

INTRODUCTION = """\
# API reference

Generated from the comments in [proto/](../proto/topwork) by `make proto`; never edited.
[How to call it](tutorial-client.md); [limits](reference.md#limits).
"""
# Field numbers of descriptor.proto, of which the paths in a file's source information consist.
FILE_MESSAGES, FILE_ENUMS, FILE_SERVICES = 4, 5, 6
MESSAGE_FIELDS, MESSAGE_MESSAGES, MESSAGE_ENUMS, SERVICE_METHODS, ENUM_VALUES = 2, 3, 4, 2, 2

Path = tuple[int, ...]
Comments = dict[Path, str]


def page(contract: FileDescriptorSet, files: Sequence[str]) -> str:
    """Return the reference of ``files`` from the comments in ``contract``."""
    named = {file.name: file for file in contract.file}
    parts = [part for name in files for part in _file(named[name])]
    return "\n\n".join([INTRODUCTION.rstrip(), *parts]) + "\n"


def comments_of(file: FileDescriptorProto) -> Comments:
    """Return the comments of a file by the path of what they describe."""
    return {
        tuple(location.path): _text(location.leading_comments)
        for location in file.source_code_info.location
    }


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = comments_of(file)
    for index, service in enumerate(file.service):
        at: Path = (FILE_SERVICES, index)
        yield f"## {file.package}.{service.name}"
        yield comments[at]
        for number, method in enumerate(service.method):
            yield f"### {service.name}.{method.name}"
            yield _signature(method)
            if method.options.HasExtension(annotations_pb2.http):
                rule = method.options.Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                yield f"HTTP: `{verb.upper()} {getattr(rule, verb)}`"
            yield comments[*at, SERVICE_METHODS, number]
    if not file.service:
        yield f"## {file.name}"
    for index, message in enumerate(file.message_type):
        yield from _message(message, file.package, (FILE_MESSAGES, index), comments)
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, file.package, (FILE_ENUMS, index), comments)


def _signature(method: MethodDescriptorProto) -> str:
    request = ("stream " if method.client_streaming else "") + _short(method.input_type)
    response = ("stream " if method.server_streaming else "") + _short(method.output_type)
    return f"`{request}` → `{response}`"


def _message(message: DescriptorProto, scope: str, at: Path, comments: Comments) -> Iterator[str]:
    if message.options.map_entry:
        return  # the type of its field describes it
    name = f"{scope}.{message.name}"
    yield f"### {name}"
    yield comments.get(at, "")
    rows = [
        f"| {field.number} | `{field.name}` | {_type(message, field)} | "
        f"{_cell(comments.get((*at, MESSAGE_FIELDS, index), ''))} |"
        for index, field in enumerate(message.field)
    ]
    if rows:
        yield "\n".join(["| | field | type | |", "| --- | --- | --- | --- |", *rows])
    for index, nested in enumerate(message.nested_type):
        yield from _message(nested, name, (*at, MESSAGE_MESSAGES, index), comments)
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, name, (*at, MESSAGE_ENUMS, index), comments)


def _enum(enum: EnumDescriptorProto, scope: str, at: Path, comments: Comments) -> Iterator[str]:
    yield f"### {scope}.{enum.name}"
    yield comments.get(at, "")
    rows = [
        f"| {value.number} | `{value.name}` | "
        f"{_cell(comments.get((*at, ENUM_VALUES, index), ''))} |"
        for index, value in enumerate(enum.value)
    ]
    yield "\n".join(["| | value | |", "| --- | --- | --- |", *rows])


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = nested.field
            return f"`map<{_kind(key)}, {_kind(value)}>`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"`repeated {_kind(field)}`"
    if field.proto3_optional:
        return f"`optional {_kind(field)}`"
    if field.HasField("oneof_index"):
        return f"`{_kind(field)}`, one of `{message.oneof_decl[field.oneof_index].name}`"
    return f"`{_kind(field)}`"


def _kind(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _short(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _short(name: str) -> str:
    """Return a type's name, without the package if that is topwork.v1."""
    return name.removeprefix(".").removeprefix("topwork.v1.")


def _text(comment: str) -> str:
    """Return a comment without the blank after each ``//``."""
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.strip("\n").splitlines())


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
